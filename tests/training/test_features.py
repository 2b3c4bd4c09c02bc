"""What a transformers user switches on: adapters, checkpointing, half precision, conversations, several processes."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import multiref as mr
from multiref.data import Pair
from multiref.models import ModelSpec, completion_logps, encode, load
from multiref.references.scores import SequenceScores, content_keys
from multiref.training import PreferenceTrainer
from multiref.training.arguments import with_lora
from tests.conftest import make_llama
from tests.training.world import arguments

WORDS = ["the cat", "a dog", "two", "the log", "a little dog", "five"]


@pytest.fixture(scope="module")
def pairs():
    return [Pair(f"what is {w}?", f" {w} is raining", f" the {w} sat", w) for w in WORDS]


@pytest.fixture(scope="module")
def talks():
    """Several turns: the prompt is a conversation, the completion its next turn."""

    def said(role, content):
        return {"role": role, "content": content}

    return [
        Pair(
            (said("user", "is it raining?"), said("assistant", "yes"), said("user", f"what is {w}?")),
            (said("assistant", f"{w} is raining"),),
            (said("assistant", f"no {w}"),),
            w,
        )
        for w in WORDS
    ]


def scored(pairs):
    prompts = [p.prompt for p in pairs for _ in range(2)]
    sides = [side for p in pairs for side in (p.chosen, p.rejected)]
    logps = -20 * torch.rand(2, len(sides), generator=torch.Generator().manual_seed(2), dtype=torch.float64) - 30
    lengths = torch.ones(2, len(sides), dtype=torch.long)
    return SequenceScores(("a", "b"), content_keys(prompts, sides), logps, lengths, torch.zeros_like(lengths, dtype=torch.bool))


def curve(model, tokenizer, pairs, folder, **options):
    settings = {
        "logging_strategy": "steps",
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "max_steps": 3,
        "per_device_train_batch_size": 3,
    }
    trainer = PreferenceTrainer(
        model,
        regularizer=mr.ReverseKL((0.5, 0.5)),
        beta=0.2,
        scores=scored(pairs),
        args=arguments(folder, **(settings | options)),
        train_dataset=pairs,
        processing_class=tokenizer,
    )
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line], trainer


def test_gradient_checkpointing_changes_nothing(tiny_tokenizer, pairs, tmp_path):
    model = make_llama(len(tiny_tokenizer), std=0.1)
    plain, _ = curve(copy.deepcopy(model), tiny_tokenizer, pairs, tmp_path)
    checkpointed, _ = curve(copy.deepcopy(model), tiny_tokenizer, pairs, tmp_path, gradient_checkpointing=True)
    assert checkpointed == pytest.approx(plain, abs=1e-5)


def test_an_adapter_trains_and_its_base_does_not(tiny_tokenizer, pairs, tmp_path):
    """LoRA starts as the base itself (B = 0): the same first loss; then only the adapter has moved."""
    peft = pytest.importorskip("peft")
    model = make_llama(len(tiny_tokenizer), std=0.1)
    plain, _ = curve(copy.deepcopy(model), tiny_tokenizer, pairs, tmp_path)
    adapted = peft.get_peft_model(
        copy.deepcopy(model), peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    losses, trainer = curve(
        adapted, tiny_tokenizer, pairs, tmp_path, save_strategy="steps", save_steps=3, gradient_checkpointing=True
    )
    assert losses[0] == pytest.approx(plain[0], abs=1e-5) and losses[1] != pytest.approx(plain[1], abs=1e-4)
    base = dict(model.named_parameters())
    for name, parameter in adapted.named_parameters():
        if "lora" not in name:
            torch.testing.assert_close(parameter, base[name.replace("base_model.model.", "").replace(".base_layer", "")])
    assert any(float(p.abs().max()) > 0 for n, p in adapted.named_parameters() if "lora_B" in n)
    assert (tmp_path / "checkpoint-3" / "adapter_model.safetensors").exists()
    del trainer


def test_an_adapter_on_a_quantised_base_trains_as_on_the_same_numbers_unquantised(tiny_tokenizer, pairs, tmp_path):
    """NF4 by bitsandbytes; the witness is a float32 model that holds the dequantised weights.
    The packed weights do not move."""
    bnb = pytest.importorskip("bitsandbytes")
    plain = make_llama(len(tiny_tokenizer), std=0.1)
    plain.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    packed = load(ModelSpec(tmp_path / "base", quantization="int4"), device="cpu").model
    layers = {name: module for name, module in packed.named_modules() if isinstance(module, bnb.nn.Linear4bit)}
    assert len(layers) == 14 and packed.get_output_embeddings() not in layers.values()
    for name, module in layers.items():
        whole = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        assert not torch.equal(whole, plain.get_submodule(name).weight)
        plain.get_submodule(name).weight.data = whole
    before = {name: module.weight.detach().clone() for name, module in layers.items()}
    curves = []
    for model in (plain, packed):
        torch.manual_seed(0)
        adapted = with_lora(model, {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]})
        curves.append(curve(adapted, tiny_tokenizer, pairs, tmp_path / "run", max_steps=5)[0])
    assert curves[1] == pytest.approx(curves[0], abs=1e-4)
    assert all(torch.equal(module.weight, before[name]) for name, module in layers.items())


def test_half_precision_follows_single_precision(tiny_tokenizer, pairs, tmp_path):
    """bf16 autocast, weights in float32: the curve within bfloat16's 1e-2 of the float32 one, but not the same numbers."""
    model = make_llama(len(tiny_tokenizer), std=0.1)
    single, _ = curve(copy.deepcopy(model), tiny_tokenizer, pairs, tmp_path)
    half, trainer = curve(copy.deepcopy(model), tiny_tokenizer, pairs, tmp_path, bf16=True)
    assert half == pytest.approx(single, rel=2e-2, abs=2e-2) and half != single
    assert next(trainer.model.parameters()).dtype == torch.float32


def test_conversations_of_several_turns(tiny_tokenizer, talks, tmp_path):
    """The first loss by hand: each completion alone after its conversation, template and all."""
    model = make_llama(len(tiny_tokenizer), std=0.1)
    losses, _ = curve(copy.deepcopy(model), tiny_tokenizer, talks, tmp_path, per_device_train_batch_size=6)
    scores, total = scored(talks), 0.0
    for pair in talks:
        with torch.inference_mode():
            logps = [
                completion_logps(model, [encode(tiny_tokenizer, pair.prompt, (side,))])[0]
                for side in (pair.chosen, pair.rejected)
            ]
        chosen, rejected = scores.of([pair.prompt] * 2, [pair.chosen, pair.rejected]).mean(0)
        total += float(-torch.nn.functional.logsigmoid(0.2 * (logps[0] - logps[1] - (chosen - rejected))))
    assert losses[0] == pytest.approx(total / len(talks), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "strategy"),
    [("ddp", "fixed"), ("fsdp2", "fixed"), ("deepspeed", "fixed"), ("ddp", "window"), ("ddp", "thompson"), ("ddp", "reward")],
)
def test_two_processes_follow_the_curve_of_one(how, strategy, tmp_path):
    """gloo on the CPU: 11 pairs, steps of 4, so that the last step has an odd share;
    losses equal to 1e-5, changing weights too."""
    if how == "deepspeed":
        pytest.importorskip("deepspeed")
    script = Path(__file__).parent / "two_processes.py"
    environment = {"DS_ACCELERATOR": "cpu", **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([sys.executable, str(script), "one", str(tmp_path / "one.json"), strategy], check=True, env=environment)
    subprocess.run([*launch, str(script), how, str(tmp_path / "two.json"), strategy], check=True, env=environment)
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert len(one["losses"]) == 6 and max(one["losses"]) - min(one["losses"]) > 0.05
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert two["margins"] == pytest.approx(one["margins"], abs=1e-4)
    if strategy != "reward":
        assert two["weights"] == pytest.approx(one["weights"], abs=1e-6)
        assert (len(set(one["weights"])) > 1) == (strategy != "fixed")
    assert two["eval_loss"] == pytest.approx(one["eval_loss"], abs=1e-5)
