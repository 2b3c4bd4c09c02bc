"""What was trained is what comes back: folders that load alone and score as the model in memory did, and faults that are
planted on the way."""

import json
import shutil
import weakref
from pathlib import Path

import pytest
import torch

from multiref.errors import ModelError
from multiref.models import load
from multiref.training.saved import rows_of_rollouts
from tests.conftest import make_llama, make_tokenizer
from tests.runs.doing import do

OTHER_TEMPLATE = "{% for m in messages %}[{{ m['content'] }}]<s>{% endfor %}{% if add_generation_prompt %}[{% endif %}"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model with a chat template, pairs of both kinds, a trained adapter with biases and a whole head."""
    import peft

    folder, tokenizer = tmp_path_factory.mktemp("world"), make_tokenizer(chat=True)
    model = make_llama(len(tokenizer), std=0.1, attention_bias=True)
    model.save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    say = lambda role, text: [{"role": role, "content": text}]  # noqa: E731
    rows = [
        {"prompt": say("user", f"what is {w}?"), "chosen": say("assistant", f"{w} is raining"), "rejected": say("assistant", w)}
        for w in ("the cat", "a dog", "two", "Max")
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = peft.LoraConfig(
        r=2, target_modules=["q_proj"], bias="all", modules_to_save=["lm_head"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    adapted = peft.get_peft_model(load(folder / "policy", device="cpu").model, options)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    adapted.save_pretrained(folder / "adapter")
    tokenizer.save_pretrained(folder / "adapter")
    return folder


@pytest.fixture
def config(world, tmp_path):
    return {
        "model": str(world / "policy"),
        "references": [{"name": "first", "model": str(world / "policy")}],
        "beta": 0.2,
        "data": str(world / "pairs.jsonl"),
        "output": str(tmp_path / "run"),
        "training": {"learning_rate": 1e-2, "per_device_train_batch_size": 4, "max_steps": 3, "use_cpu": True},
    }


def logps(folder, **options):
    """Of a fixed text under what loads from the folder: plain logits."""
    loaded = load(folder, device="cpu")
    ids = loaded.tokenizer("the cat sat on the mat", return_tensors="pt").input_ids
    with torch.no_grad():
        return loaded.model(ids).logits.log_softmax(-1)


def card(folder):
    return (Path(folder) / "model" / "README.md").read_text()


@pytest.mark.parametrize("bf16", [False, True])
def test_the_card_and_the_page_say_what_was_found(bf16, config):
    """Weights in float32, under autocast to bfloat16 too: what is compared is the weights' own arithmetic."""
    folder = do({**config, "training": {**config["training"], "bf16": bf16}})
    assert "8 rows scored in memory and from the saved folder (cpu): largest difference 0 nats a token" in card(folder)
    assert "scored in memory and from the saved folder" in (folder / "report.html").read_text()


@pytest.mark.parametrize("task", ["preference", pytest.param("reward", marks=pytest.mark.slow)])
def test_the_trained_model_is_gone_when_the_saved_one_is_loaded(task, config, monkeypatch):
    """Memory holds one of them at a time; without room on the accelerator the saved one is loaded on the CPU."""
    from multiref.runs.pairs import TrainerJob
    from multiref.training import saved

    settings = (
        config if task == "preference" else {k: config[k] for k in ("model", "data", "output", "training")} | {"task": task}
    )
    seen, real_remember, real = [], TrainerJob.release, getattr(saved, "load" if task == "preference" else "open_reward_model")

    def release(self):
        seen.append(weakref.ref(self.model))
        real_remember(self)

    def opener(spec, device=None):
        seen.append(seen[0]())
        if device is None:
            raise torch.OutOfMemoryError("no room")
        return real(spec, device=device)

    monkeypatch.setattr(TrainerJob, "release", release)
    monkeypatch.setattr(saved, real.__name__, opener)
    assert "(cpu)" in card(do(settings)) and seen[1:] == [None, None]


def test_a_tensor_that_is_not_saved(config, monkeypatch):
    """A saver that leaves a tensor as it was before training: the run fails, keeps its checkpoint, and goes on from there."""
    from transformers import LlamaForCausalLM

    real = LlamaForCausalLM.save_pretrained
    before = load(config["model"], device="cpu").model.state_dict()["model.layers.1.mlp.up_proj.weight"]

    def forgetful(self, folder, state_dict=None, **options):
        state = dict(state_dict or self.state_dict())
        state["model.layers.1.mlp.up_proj.weight"] = before
        real(self, folder, state_dict=state, **options)

    with monkeypatch.context() as patched:
        patched.setattr(LlamaForCausalLM, "save_pretrained", forgetful)
        with pytest.raises(ModelError, match=r"What was saved is not what was trained.*kept as model\.refused"):
            do({**config, "training": {**config["training"], "save_strategy": "no"}})
    folder = Path(config["output"])
    assert (folder / "model.refused" / "config.json").is_file() and not (folder / "model").exists()
    folder = do({**config, "training": {**config["training"], "save_strategy": "no"}})
    assert (folder / "model" / "config.json").is_file()


def test_another_template_or_vocabulary_in_the_folder(config, monkeypatch):
    from transformers import PreTrainedTokenizerBase

    real = PreTrainedTokenizerBase.save_pretrained

    def other(self, folder, **options):
        kept, self.chat_template = self.chat_template, OTHER_TEMPLATE
        real(self, folder, **options)
        self.chat_template = kept

    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", other)
    with pytest.raises(ModelError, match=r"tokenizer writes other tokens than the one that was trained with: row 1"):
        do(config)
    with pytest.raises(ModelError, match=r"writes other tokens"):  # skipping the check is not another run
        do(config)
    off = card(do({**config, "check_saved": False})).replace("\\", "")
    assert "was not compared with the trained one (check_saved: false)" in off


@pytest.mark.slow
def test_an_adapter_on_an_adapter(config, world, tmp_path, monkeypatch):
    """Three times: each folder loads alone as it was trained, from any working folder, also when the first is gone."""
    before = logps(world / "adapter")
    shutil.copytree(world / "adapter", tmp_path / "zero")
    one = do({**config, "lora": {"r": 2}, "model": {"path": str(world / "policy"), "adapter": str(tmp_path / "zero")}})
    after = logps(one / "model")
    assert not torch.allclose(after, before, atol=1e-3), "it was trained"
    assert not torch.allclose(after, logps(world / "policy"), atol=1e-2)
    monkeypatch.chdir(tmp_path)
    do({**config, "lora": {"r": 3}, "model": "run/model", "output": "two"})
    shutil.rmtree(tmp_path / "zero")
    assert torch.equal(logps(one / "model"), after)
    found = logps("two/model")
    monkeypatch.chdir(world)
    assert torch.equal(logps(tmp_path / "two" / "model"), found) and not torch.allclose(found, after, atol=1e-3)
    shutil.move(tmp_path / "two" / "model", tmp_path / "moved")
    assert torch.equal(logps(tmp_path / "moved"), found)


def test_an_adapter_on_an_adapter_resumes(config, world):
    """From the checkpoint in the middle, to the same bits: what is in it is the new adapter, not the one below."""
    settings = {**config, "lora": {"r": 2}, "model": str(world / "adapter")}
    settings["training"] = {**config["training"], "max_steps": 4, "save_steps": 2, "logging_steps": 1}
    folder = do(settings)
    whole = logps(folder / "model")
    for late in (folder / "model", folder / "checkpoints" / "checkpoint-4"):
        shutil.rmtree(late)
    said = []
    assert torch.equal(logps(do(settings, say=said.append) / "model"), whole) and "Going on from step 2." in said


@pytest.mark.parametrize("modules", [None, ["lm_head"], ["embed_tokens", "lm_head"]])
@pytest.mark.parametrize("tied", [False, True])
def test_an_adapter_with_tokens_added(modules, tied, tmp_path):
    """Embeddings resized before training, whole in the adapter or not, tied or not: the folder scores as in memory."""
    import peft

    from multiref.training.adapters import save_whole

    tokenizer = make_tokenizer()
    make_llama(len(tokenizer), tie_word_embeddings=tied).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    tokenizer.add_tokens(["<new>"])
    base = load(tmp_path / "base", device="cpu").model
    base.resize_token_embeddings(len(tokenizer))
    options = peft.LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False, modules_to_save=modules
    )
    policy = peft.get_peft_model(base, options)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
        save_whole(policy, tokenizer, tmp_path / "adapter")
        loaded = load(tmp_path / "adapter", device="cpu")
        ids = torch.tensor([[3, 4, len(tokenizer) - 1, 5]])
        assert torch.equal(loaded.model(ids).logits, policy.eval()(ids).logits) and len(loaded.tokenizer) == len(tokenizer)


def test_an_adapter_is_trained_further(config, world):
    """All that is saved of it trains, biases and the whole head included, and comes back; the base does not move."""
    folder = do({**config, "model": str(world / "adapter")})
    was, now = (load(where, device="cpu").model.state_dict() for where in (world / "adapter", folder / "model"))
    moved = {name for name in was if not torch.equal(was[name], now[name])}
    assert any("lora_A" in name for name in moved) and any("lm_head.modules_to_save" in name for name in moved)
    assert any(name.endswith("q_proj.base_layer.bias") for name in moved)
    assert not any(name.endswith(("k_proj.weight", "embed_tokens.weight")) for name in moved)
    base = json.loads((folder / "model" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == str((world / "policy").resolve())


def test_a_reward_model(config):
    settings = {name: config[name] for name in ("model", "data", "output", "training")} | {"task": "reward"}
    for lora in (None, {"r": 2}):
        folder = do({**settings, "lora": lora, "output": f"{settings['output']}{lora is None}"})
        assert "8 rows scored in memory" in card(folder) and "reward, where rounding may be" in card(folder)


@pytest.mark.parametrize("lora", [pytest.param(None, marks=pytest.mark.slow), {"r": 2}])
@pytest.mark.filterwarnings("ignore:Every completion of the first step")
@pytest.mark.parametrize("task", ["online", pytest.param("iterative", marks=pytest.mark.slow)])
def test_what_samples(task, lora, config, world, tmp_path):
    """From an adapter, trained further or with another one on top."""
    (tmp_path / "prompts.txt").write_text("the cat sat on the mat\n\nOnce upon a time there was a dog\n")
    settings = {name: config[name] for name in ("references", "beta", "output")}
    settings |= {"task": task, "model": str(world / "adapter"), "lora": lora}
    if task == "online":
        settings |= {
            "prompts": [{"path": str(tmp_path / "prompts.txt"), "words": 3}],
            "rewards": [{"kind": "length", "target": 3}],
            "method": {"name": "rloo", "group": 2},
            "training": {"steps": 2, "prompts_per_step": 1, "max_new_tokens": 4, "learning_rate": 1e-2},
        }
    else:
        (tmp_path / "lexicon.txt").write_text("cat\t1\nthe\t2\n")
        settings |= {
            "prompts": str(tmp_path / "prompts.txt"),
            "prompt_words": 3,
            "oracle": {"kind": "lexicon", "path": str(tmp_path / "lexicon.txt")},
            "method": {"name": "online-dpo"},
            "labels": [4, 8],
            "max_new_tokens": 4,
            "held_out": 4,
            "plan": {"steps": 2, "learning_rate": 1e-2},
        }
    if task == "iterative" and lora is None:
        with pytest.raises(ModelError, match=r"trains the base's biases.*a new one on top"):
            do(settings)
        return
    folder = do(settings)
    assert "rows scored in memory and from the saved folder (cpu)" in card(folder)
    assert not torch.equal(logps(folder / "model"), logps(world / "adapter"))


def test_a_table_is_compared_too(world):
    """Its −∞ are equal to −∞."""
    from multiref.models import Generation, Tabular, sample, tabular_tokenizer

    table = Tabular(3, 2, 2)
    with torch.no_grad():
        table.table[0, 0, 1] = -torch.inf
    tokenizer = tabular_tokenizer(table)
    rollouts = sample(table, tokenizer, ["x0", "x1"], Generation(2), generator=torch.Generator().manual_seed(0))
    assert rows_of_rollouts(rollouts, tokenizer).remember(table, tokenizer).spread < 1e-6


def test_an_adapter_that_was_kept_for_scoring_alone_is_not_trained(config, world, tmp_path):
    """VB-LoRA's logits that were left out of the file are infinite once it is loaded: refused before a step."""
    import peft

    options = peft.VBLoRAConfig(
        r=2,
        num_vectors=8,
        vector_length=4,
        topk=2,
        save_only_topk_weights=True,
        target_modules=["q_proj"],
        task_type="CAUSAL_LM",
    )
    peft.get_peft_model(load(world / "policy", device="cpu").model, options).save_pretrained(tmp_path / "kept")
    with pytest.raises(ModelError, match="weights that would be trained are no numbers once loaded"):
        do({**config, "model": {"path": str(world / "policy"), "adapter": str(tmp_path / "kept")}})
    assert not (tmp_path / "run" / "checkpoints").exists()
