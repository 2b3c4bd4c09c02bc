"""A new adapter on top of a trained one: once the trained policy was lost, and the base came back."""

import json

import pytest

import multiref as mr
from multiref.errors import ModelError
from tests.conftest import make_llama, make_tokenizer
from tests.runs.doing import do

WORDS = ("the cat", "a dog", "two plus three", "the log")


@pytest.mark.slow
def test_the_second_policy_begins_as_the_first_and_comes_back(tmp_path):
    tokenizer = make_tokenizer()
    for seed, name in enumerate(("base", "other")):
        make_llama(len(tokenizer), seed=seed, std=0.1).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    rows = [{"prompt": f"what is {w}?", "chosen": f" {w} is raining", "rejected": f" the {w} sat"} for w in WORDS]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "references": [{"name": "a", "model": str(tmp_path / "other")}],
        "beta": 0.1,
        "data": str(tmp_path / "pairs.jsonl"),
        "lora": {"r": 4},
        "training": {
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "max_steps": 8,
            "use_cpu": True,
            "logging_steps": 1,
        },
    }
    base = str(tmp_path / "base")
    one = do({**settings, "model": base, "output": str(tmp_path / "one")}) / "model"
    two = do({**settings, "model": {"path": base, "adapter": str(one)}, "output": str(tmp_path / "two")})
    pairs = mr.data.read_pairs(tmp_path / "pairs.jsonl")

    def margin(reference):
        chosen, rejected = mr.References({"x": reference}).score(pairs).of_pairs(pairs)
        return float((chosen - rejected).mean())

    def lines(run):
        found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [line for line in found if "rewards/margins" in line]

    begins, ends = lines(two)[0], lines(two)[-1]
    first = lines(tmp_path / "one")[0]
    other = margin(str(tmp_path / "other"))
    assert first["rewards/margins"] == pytest.approx(0.1 * (margin(base) - other), abs=1e-4)
    assert begins["rewards/margins"] == pytest.approx(0.1 * (margin(str(one)) - other), abs=1e-4), "base and first adapter"
    found = margin(str(two / "model"))
    assert margin(base) < margin(str(one)) < found
    assert 0.1 * (found - other) > ends["rewards/margins"], "the last line is of the weights before the last step"
    with pytest.raises(ModelError, match=r"trained on top of another one.*Give its folder as the model"):
        margin({"model": base, "adapter": str(two / "model")})
