"""A run whose weights hold no numbers any more says so at the step, and does not log the mean loss of the steps before."""

import json

import pytest

from multiref.errors import ConfigError, ModelError
from tests.runs.doing import do, make_two


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
