"""`multiref train` with `task: reward`: a folder that loads with transformers, that an interrupted run reaches too,
and clear messages."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, TrainerCallback
from typer.testing import CliRunner

from multiref import runs
from multiref.cli import app
from multiref.cli.train import command
from multiref.models import ModelSpec
from multiref.runs import read_run, reward
from multiref.runs.folder import RunFolder
from multiref.training.pair_trainer import PairTrainer
from multiref.training.reward import open_reward_model, rewards_of
from tests.runs.doing import WORDS, do, settings

RECIPE = Path(__file__).parents[2] / "recipes" / "reward-model.yaml"


@pytest.fixture
def config(tiny_folder, tmp_path):
    rows = [
        {"prompt": f"what is {w}?", "chosen": f" {w} is raining", "rejected": f" the {w} sat", "margin": 0.1} for w in WORDS
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    training = {
        "per_device_train_batch_size": 4,
        "max_steps": 6,
        "learning_rate": 2e-3,
        "logging_steps": 1,
        "save_steps": 2,
        "use_cpu": True,
        "seed": 1,
    }
    return {
        "task": "reward", "model": str(tiny_folder), "data": str(tmp_path / "pairs.jsonl"), "evaluation": {"fraction": 0.25},
        "centre": 0.01,
        "output": str(tmp_path / "run"), "training": training,
    }  # fmt: skip


def train(config, tmp_path, *extra):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return CliRunner().invoke(app, ["train", "--config", str(tmp_path / "run.yaml"), *extra])


def weights(folder):
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model")
    return torch.cat([p.detach().flatten() for p in model.parameters()])


class Killed(TrainerCallback):
    """Stops a run in the way of a kill: an exception in the middle of a step."""

    def on_step_end(self, args, state, control, **_):
        if state.global_step == 5:
            raise KeyboardInterrupt


def test_a_run_and_the_same_run_interrupted(config, tmp_path, monkeypatch):
    assert train(config, tmp_path).exit_code == 0
    folder = tmp_path / "run"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] == pytest.approx(
        math.log(2) + 0.05, abs=0.01
    )  # rewards are 0 at first: −log σ(−0.1) = log 2 + 0.05 + …
    assert "eval_calibration_error" in lines[-1] or any("eval_calibration_error" in line for line in lines)
    points = json.loads((folder / "calibration.json").read_text())
    assert sum(b["count"] for b in points["bins"]) == 3 and 0 <= points["error"] <= 1
    card = (folder / "model" / "README.md").read_text()
    assert "log σ(d)" in card and "expected calibration error" in card and "β =" not in card and "## References" not in card
    assert (folder / "report.html").stat().st_size > 1000 and not list(folder.rglob("training_args.bin"))
    again = train(config, tmp_path)
    assert again.exit_code == 0 and "nothing to do" in again.output

    other = {**config, "output": str(tmp_path / "other")}
    made = reward.RewardTrainer

    def dying(*given, callbacks, **options):
        return made(*given, callbacks=[*callbacks, Killed()], **options)

    monkeypatch.setattr(reward, "RewardTrainer", dying)
    with pytest.raises(KeyboardInterrupt):
        do(other)
    monkeypatch.setattr(reward, "RewardTrainer", made)
    resumed = train(other, tmp_path)
    assert resumed.exit_code == 0 and "Going on from step 4" in resumed.output
    assert torch.equal(weights(folder), weights(tmp_path / "other"))


def test_an_adapter_is_merged_into_what_is_written(config, tmp_path):
    config |= {"lora": {"r": 2}, "evaluation": None}
    assert train(config, tmp_path).exit_code == 0
    found = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    assert found.score.weight.abs().max() > 0 and not (tmp_path / "run" / "model" / "adapter_config.json").exists()


def test_the_figures_of_an_adapter_are_of_what_it_is_merged_into(config, tmp_path):
    """In bfloat16 the merged weights are rounded to another model than the one that was trained: that one is reported."""
    config |= {"model": {"path": config["model"], "dtype": "bfloat16"}, "lora": {"r": 2, "lora_alpha": 64}}
    held_out = settings(config).read()[1]
    folder = do(config)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    saved = open_reward_model(ModelSpec(str(folder / "model"), dtype="bfloat16"), device="cpu")
    prompts, tokenizer = [pair.prompt for pair in held_out], saved.tokenizer
    sides = ([pair.chosen for pair in held_out], [pair.rejected for pair in held_out])
    chosen, rejected = (rewards_of(saved.model, tokenizer, prompts, side, batch=1) for side in sides)
    found = [line["eval_rewards/chosen"] for line in lines if "eval_rewards/chosen" in line]
    assert found[-1] == pytest.approx(float(chosen.mean()), abs=1e-4), (found, chosen)
    found = [line["eval_rewards/margins"] for line in lines if "eval_rewards/margins" in line]
    assert found[-1] == pytest.approx(float((chosen - rejected).mean()), abs=1e-4), (found, chosen - rejected)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"centre": -0.1}, "centre: found -0.1 (number), expected at least 0."),
        ({"label_smoothing": 0.5}, "label_smoothing: found 0.5 (number), expected a number below 0.5."),
        ({"betta": 0.1}, "betta: unknown key"),
        ({"model": {"path": "m", "adapter": "a"}}, "merge the adapter first"),
        ({"training": {"learning_rat": 1.0}}, "did you mean `learning_rate`"),
        ({"data": "nowhere.jsonl"}, "nowhere.jsonl does not exist"),
        ({"model": "./nowhere"}, "no model folder"),
    ],
)
def test_mistakes_are_one_message(config, tmp_path, change, words):
    result = train(config | change, tmp_path)
    assert result.exit_code == 2 and words in result.stderr and "Traceback" not in result.stderr


def test_the_recipe_is_read(tmp_path):
    run = read_run(RECIPE, [f"output={tmp_path}"])
    assert run.task == "reward" and run.centre == 0.01 and run.training.given()["per_device_train_batch_size"] == 16


def test_lines_around_an_epoch_s_end_and_training_s_end_are_there_once(config, tmp_path, monkeypatch):
    """A kill after the checkpoint of an epoch's last step (its evaluation must be there), and one while the model is written
    (what the end logged must not be there twice)."""
    config["training"] |= {"max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 3, "save_steps": 3}
    assert train(config, tmp_path).exit_code == 0
    whole = timeless(tmp_path / "run" / "metrics.jsonl")
    ends = [name for line in whole for name in line if name in ("eval_loss", "total_flos")]
    assert ends == ["eval_loss", "eval_loss", "total_flos", "eval_loss"]
    config["output"] = str(tmp_path / "killed")

    def killed_in(owner, name, after):
        def dying(*given, **named):
            monkeypatch.setattr(owner, name, after)
            raise KeyboardInterrupt

        monkeypatch.setattr(owner, name, dying)

    killed_in(PairTrainer, "_save_checkpoint", PairTrainer._save_checkpoint)
    assert train(config, tmp_path).exit_code == 130
    killed_in(RunFolder, "write_model", RunFolder.write_model)
    assert train(config, tmp_path).exit_code == 130
    assert train(config, tmp_path).exit_code == 0
    assert timeless(tmp_path / "killed" / "metrics.jsonl") == whole


def timeless(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if "runtime" not in key and "per_second" not in key} for line in lines]


def test_a_reward_model_judges_what_is_evaluated_next(tmp_path, monkeypatch):
    """It is no policy: the next step names it as the reward; of any other task what was trained is the second policy."""
    (tmp_path / "made").mkdir()
    monkeypatch.setattr(runs, "run", lambda *_, **__: tmp_path / "made")
    for task, words in (("reward", "--prompts … --reward model="), ("online", "--policy after=")):
        (tmp_path / "made" / "config.yaml").write_text(f"format: 2\ntask: {task}\nmodel: {{path: base}}\n", encoding="utf-8")
        said = command(config=tmp_path / "any.yaml")["next"]
        assert said.startswith(f"multiref evaluate --policy before=base {words}{tmp_path / 'made' / 'model'} --")
