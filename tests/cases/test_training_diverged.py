"""A run whose weights hold no numbers any more says so at the step, and does not log the mean loss of the steps before."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model

import multiref as mr
from multiref.errors import ArgumentError, ConfigError, ModelError
from multiref.models import LanguageModel
from multiref.models.small import small_llama, word_tokenizer
from tests.runs.doing import do, make_two
from tests.training.online.tables import make_trainer, random_table, reward_function, reward_table
from tests.training.world import END, WORDS, word_trainer


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folders = make_two(tmp_path_factory, std=0.1)
    data = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [{"prompt": f"the cat {n}", "chosen": " sat on the mat", "rejected": " is five"} for n in range(4)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    training = {"max_steps": 3, "logging_steps": 1, "per_device_train_batch_size": 2, "use_cpu": True}
    references = [{"name": name, "model": path} for name, path in folders.items()]
    return {"model": folders["policy"], "references": references, "beta": 0.1, "data": str(data), "training": training}


def test_a_loss_that_is_no_number_ends_the_run(config, tmp_path):
    training = {**config["training"], "learning_rate": 1e30}
    with pytest.raises(ModelError, match="The loss is nan at step 2: training diverged"):
        do({**config, "training": training, "output": str(tmp_path / "run")})
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"eval_strategy": "steps", "eval_steps": 1}, "nothing to evaluate on"),
        ({"learning_rate": float("nan")}, "learning rate"),
    ],
    ids=["evaluation", "rate"],
)
def test_what_cannot_be_trained_so_is_refused_before_anything_is_scored(config, tmp_path, option, words):
    with pytest.raises(ConfigError, match=words):
        do({**config, "training": {**config["training"], **option}, "output": str(tmp_path / "run")})
    assert not (tmp_path / "run").exists()


PAIRS = [{"prompt": f"w{i}", "chosen": " w1 w2", "rejected": " w3"} for i in range(6)]


@pytest.fixture(scope="module")
def scores():
    reference = LanguageModel(small_llama(9, spread=0.3), word_tokenizer(WORDS), "a")
    return mr.References({"a": reference}, tokenisation=END).score(PAIRS)


def no_number_at(step, parameter):
    calls = iter(range(1, 99))
    parameter.register_hook(lambda gradient: gradient * torch.nan if next(calls) == step else gradient)


@pytest.mark.parametrize("strategy", ["no", "steps", "epoch"])
def test_a_gradient_that_is_no_number_under_a_loss_that_is_one(strategy, scores, tmp_path):
    """In the last step no later loss tells, and before a checkpoint none does in time: it would be gone on with."""
    model, step = small_llama(9, spread=0.3), 3 if strategy == "no" else 2
    save = {"save_strategy": strategy, "save_steps": 2}
    no_number_at(step, model.model.layers[0].mlp.up_proj.weight)
    trainer = word_trainer(model, scores, PAIRS, tmp_path, max_steps=3, logging_steps=10, learning_rate=1e-3, **save)
    with pytest.raises(ModelError, match=f"The weights are no numbers at step {step}: training diverged"):
        trainer.train()
    assert not (tmp_path / "checkpoint-2").exists()


def test_a_gradient_that_is_no_number_online(tmp_path):
    policy = random_table(1)
    rewards = reward_function(policy, reward_table(policy))
    trainer = make_trainer(policy, [random_table(1)], mr.ReverseKL(), rewards=rewards, steps=2, args={"save_every": 1})
    no_number_at(2, policy.table)
    with pytest.raises(ModelError, match="The gradient's norm is nan at step 2: training diverged"):
        trainer.train(folder=tmp_path)
    assert bool(policy.table.isfinite().all()) and [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_the_best_of_an_adapter_that_transformers_does_not_find_is_refused(scores, tmp_path):
    """It went on with the last one; the log of transformers said so, which a run silences."""
    model = get_peft_model(small_llama(9, spread=0.3), LoraConfig(target_modules="all-linear"), adapter_name="mine")
    with pytest.raises(ArgumentError, match=r"load_best_model_at_end: .* called 'mine', .* expected 'default'"):
        word_trainer(model, scores, PAIRS, tmp_path, load_best_model_at_end=True)
