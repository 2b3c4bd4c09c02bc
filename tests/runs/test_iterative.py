"""`multiref train` with `task: iterative`: a folder with everything, a person's labels through files, mistakes named."""

import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from multiref.cli import app
from multiref.errors import ConfigError, DataError, MultirefNotice
from multiref.runs import read_run
from multiref.training.iterative import LabelsLate
from multiref.training.iterative.loop import say_unread
from tests.chaos.compare import difference
from tests.conftest import make_llama, make_tokenizer
from tests.runs.doing import do, settings

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def config(folders, tmp_path):
    prompts, words = tmp_path / "prompts.jsonl", tmp_path / "words.txt"
    prompts.write_text("".join(json.dumps({"prompt": f"the cat sat {n}"}) + "\n" for n in range(3)))
    words.write_text("dog\t2\ncat\t-1\nthe\t1\n")
    return {
        "task": "iterative", "model": folders["policy"], "beta": 0.2, "output": str(tmp_path / "run"),
        "references": [{"name": "policy", "model": folders["policy"], "weight": 0.5},
        {"name": "other", "model": folders["other"], "weight": 0.5}],
        "prompts": str(prompts), "oracle": {"kind": "lexicon", "path": str(words)},
        "method": {"name": "bilevel", "objective": "stop_gradient"},
        "labels": [8, 16], "plan": {"steps": 2, "prompts": 3, "rollouts": 2}, "lora": {"r": 2}, "max_new_tokens": 4,
        "held_out": 6,
    }  # fmt: skip


def test_a_run_leaves_a_folder_and_run_again_changes_nothing(config, tmp_path):
    """Rounds of equally many labels are the list that they stand for: the folder of one is finished for the other."""
    said: list[str] = []
    path = do({**config, "labels": {"each": 8, "rounds": 2}}, say=said.append)
    assert [line.split()[0] for line in said if "/16 labels" in line] == ["8/16", "16/16"] and "true objective" in said[-2]
    files = {file.name for file in path.iterdir()}
    texts = {"config.yaml", "versions.json", "models.json", "timing.json", "metrics.jsonl", "report.html"}
    assert files == texts | {"checkpoints", "model"}
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [line["labels"] for line in lines] == [0, 8, 16] and {"kl/other", "true objective", "sigma"} <= set(lines[-1])
    assert (path / "model" / "adapter_model.safetensors").exists()
    page = (path / "report.html").read_text()
    assert "true objective" in page and "16 labels" in page and "Standard error of the true objective" in page
    before = (path / "metrics.jsonl").read_text()
    assert do(config) == path and (path / "metrics.jsonl").read_text() == before


def in_a_fresh_process(config, output, *, seed, until=None):
    """`multiref train` with a hash seed of its own; until: it is killed as soon as so many checkpoints are there or were."""
    file = output.parent / "run.yaml"
    file.write_text(yaml.safe_dump({**config, "output": str(output)}), encoding="utf-8")
    environment = {**os.environ, "PYTHONHASHSEED": str(seed), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "multiref.cli", "train", "--config", str(file)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while until is not None and process.poll() is None:
            if any(int(path.name.rpartition("-")[2]) >= until for path in output.glob("checkpoints/checkpoint-*")):
                process.kill()
            time.sleep(0.01)
        said = process.communicate()[1]
    assert process.returncode == (0 if until is None else -9), said


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [{"name": "bilevel", "objective": "stop_gradient"}, "online-dpo"], ids=["bilevel", "online-dpo"]
)
def test_three_kills_in_fresh_processes_leave_the_same_bits(method, config, tmp_path):
    """Fresh processes differ in the order of their sets; what was killed three times, each time further, differs in nothing."""
    config |= {"method": method, "labels": [8, 16, 24, 32]}
    one, other = tmp_path / "undisturbed" / "run", tmp_path / "killed" / "run"
    for folder in (one, other):
        folder.parent.mkdir()
    in_a_fresh_process(config, one, seed=0)
    for number in (1, 2, 3):
        in_a_fresh_process(config, other, seed=number, until=number)
    in_a_fresh_process(config, other, seed=4)
    assert difference(one, other) is None
    adapter = json.loads((other / "model" / "adapter_config.json").read_text())
    assert adapter["target_modules"] == sorted(adapter["target_modules"]) and list(adapter) == sorted(adapter)


def test_a_prompt_is_cut_at_its_words_and_else_as_it_stands(config):
    Path(config["prompts"]).write_text(json.dumps({"prompt": "Q: it is\nA: "}) + "\n" + json.dumps({"text": "a b c d"}) + "\n")
    rows = settings(config, prompt_words=3).rows()
    assert [row["prompt"] for row in rows] == ["Q: it is\nA:", "a b c"]
    assert settings(config, prompt_words=4).rows()[0]["prompt"] == "Q: it is\nA: "


def test_rounds_that_are_none(config):
    for wrong in ({"each": 8}, {"each": 0, "rounds": 2}, {"each": "8", "rounds": 2}):
        with pytest.raises(ConfigError, match="each: 64"):
            do({**config, "labels": wrong})


def test_a_person_labels_through_files(config, tmp_path):
    """Each call stops where labels are missing and goes on once they are there; the labels of a round are asked for once."""
    config["oracle"] = {"kind": "human_labels", "folder": str(tmp_path / "labels")}
    done: set[str] = set()
    for expected in (1, 2):
        with pytest.raises(LabelsLate, match="run again"):
            do(config, say=lambda text: None)
        asked = sorted(path.name for path in (tmp_path / "labels").glob("pairs-*.jsonl"))
        assert len(asked) == expected
        (fresh,) = set(asked) - done
        done.add(fresh)
        rows = [json.loads(line) for line in (tmp_path / "labels" / fresh).read_text().splitlines()]
        assert len(rows) == 8 and rows[0]["prompt"].startswith("the cat sat")
        answers = "".join(json.dumps({"id": row["id"], "preferred": "first"}) + "\n" for row in rows)
        (tmp_path / "labels" / fresh.replace("pairs", "labels")).write_text(answers)
    path = do(config, say=lambda text: None)
    assert len((path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_reward_model_as_judge(config, folders, tmp_path):
    """A sequence classifier answers for the person: the run is scored by it, and it is not the model that learns."""
    import torch
    import transformers

    tokenizer = make_tokenizer()
    shape = make_llama(len(tokenizer)).config
    shape.num_labels = 1
    torch.manual_seed(3)
    transformers.LlamaForSequenceClassification(shape).save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    config |= {"oracle": {"kind": "reward_model", "path": str(tmp_path / "judge")}, "method": {"name": "iterative"}}
    path = do(config, say=lambda text: None)
    last = json.loads((path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["labels"] == 16 and abs(last["hidden reward"]) > 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"method": {"name": "ppo"}}, ConfigError, "method.name: found 'ppo', expected one of"),
        ({"method": {"name": "bilevel", "sigma": 0}}, ConfigError, "sigma"),
        ({"method": {"name": "bilevel", "alpha": 1}}, ConfigError, "method.alpha: unknown key"),
        ({"oracle": {"kind": "coin"}}, ConfigError, "oracle.kind"),
        ({"oracle": {"kind": "lexicon"}}, ConfigError, "oracle.path: missing"),
        ({"oracle": {"kind": "lexicon", "path": "nowhere.txt"}}, DataError, "nowhere.txt"),
        ({"prompts": "nowhere.jsonl"}, DataError, "nowhere.jsonl"),
        ({"labels": [16, 8]}, ConfigError, "growing"),
        ({"labels": {"each": 7, "rounds": 2}}, ConfigError, "labels: found a round of 7, expected multiples of 2"),
        ({"beta": 0.0}, ConfigError, "beta: found 0"),
        ({"privacy": {"epsilon": 1.0}}, ConfigError, "privacy: bilevel stop gradient has a loss"),
        (
            {"references": [{"name": "a", "model": "m", "tokenisation": {"end": False}}]},
            ConfigError,
            "tokenisation: they score",
        ),
        ({"plan": {"epochs": 3}}, ConfigError, "plan"),
        ({"regularizer": "ReversedKL"}, ConfigError, "regularizer"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(config, change, error, message):
    with pytest.raises(error, match=message):
        do({**config, **change}, say=lambda text: None)
    assert not Path(config["output"]).exists()


def test_a_prompt_file_with_a_bad_row_names_it(config):
    Path(config["prompts"]).write_text('{"prompt": "good"}\n{"other": 1}\n')
    with pytest.raises(DataError, match=r"prompts\.jsonl:2"):
        do(config, say=lambda text: None)


def test_on_the_command_line_a_mistake_is_one_message(config, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(config))
    result = CliRunner().invoke(app, ["train", "--config", str(file), "--set", "method.sigma=-1"])
    assert result.exit_code != 0 and "sigma" in result.output + str(result.stderr) and "Traceback" not in result.output


@pytest.mark.parametrize("name", ["bilevel", "iterative", "nash-stories"])
def test_the_recipes_are_readable(name):
    assert read_run(RECIPES / f"{name}.yaml").task == "iterative"


def test_what_a_method_does_not_read_of_the_plan_is_said(config):
    """DPO on labels fits no reward; a reward that is fitted has no outer step. Said where training begins, as in Python."""

    def unread(**changes):
        run = settings(config, **changes)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", MultirefNotice)
            say_unread(run.planned(), run.method.make())
        return {str(each.message).split(":")[0] for each in said}

    for method, idle in (("online-dpo", {"prompts": 3, "reward_rate": 0.1}), ("iterative", {"batch": 7, "reward_decay": 2.0})):
        assert unread(method=method, plan={"steps": 2, "learning_rate": 1e-3, **idle}) == set(idle)
    read = {"steps": 2, "prompts": 3, "rollouts": 2}
    assert not unread(method="gshf", plan={**read, "reward_steps": 4, "reward_batch": 8})
    assert not unread(plan={**read, "reward_rate": 0.1, "reward_decay": 2.0})
