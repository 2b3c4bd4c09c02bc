"""Runs are seen where people look: the lines of every task in TensorBoard under their own names, model and card on a hub."""

import json
import warnings
from types import SimpleNamespace

import pytest

from multiref.errors import ConfigError, MultirefWarning, OutputError
from multiref.runs import trackers
from multiref.runs.page import _answer
from tests.runs.doing import do, settings
from tests.runs.hub_double import hub_double

pytestmark = pytest.mark.filterwarnings("ignore:Every completion of the first step was cut")
TOKEN = "hf_onlyThisOneMayWriteHere"


def task(name, folders, tmp_path, steps=2):
    """A small run of each task."""
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"the cat sat {n}"}) + "\n" for n in range(3)))
    (tmp_path / "words.txt").write_text("dog\t2\ncat\t-1\n")
    rows = [{"prompt": "the cat", "chosen": f" {w} sat", "rejected": f" sat the {w}"} for w in ("dog", "log", "mat", "Max")]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = {"task": name, "model": folders["policy"], "output": str(tmp_path / "run"), "check_saved": False}
    pooled = {"beta": 0.2, "references": [{"name": each, "model": path} for each, path in folders.items()]}
    sampled = {
        "prompts": [{"path": str(tmp_path / "prompts.jsonl")}],
        "training": {"steps": steps, "prompts_per_step": 2, "max_new_tokens": 4, "save_every": 1},
    }
    paired = {"data": str(tmp_path / "pairs.jsonl"), "training": {"max_steps": steps, "logging_steps": 1, "use_cpu": True}}
    return run | {
        "preference": pooled | paired, "reward": paired, "online": pooled | sampled | {"rewards": ["length"]},
        "distill": pooled | sampled,
        "iterative": pooled | {
            "prompts": str(tmp_path / "prompts.jsonl"), "oracle": {"kind": "lexicon", "path": str(tmp_path / "words.txt")},
            "method": {"name": "iterative"}, "labels": [4, 8], "plan": {"steps": 1, "prompts": 2, "rollouts": 2},
            "max_new_tokens": 4, "held_out": 4, "lora": {"r": 2},
        },
    }[name]  # fmt: skip


def scalars(folder):
    """{name: [(step, value)]} of TensorBoard's files, read by TensorBoard."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = reader.EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return {tag: [(each.step, each.value) for each in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


@pytest.mark.slow  # the resumed run below is the short form
@pytest.mark.parametrize("name", ["preference", "reward", "online", "distill", "iterative"])
def test_tensorboard_has_the_lines_of_every_task_under_their_names(name, folders, tmp_path):
    folder = do({**task(name, folders, tmp_path), "report_to": "tensorboard"})
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    wanted = {}
    for line in lines:
        for key, value in line.items():
            if key != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                wanted.setdefault(key, []).append((int(line["step"]), value))
    found = scalars(folder)
    assert len(wanted) > 4 and set(found) == set(wanted)
    for key, points in wanted.items():
        assert [step for step, _ in found[key]] == [step for step, _ in points], key
        assert [value for _, value in found[key]] == pytest.approx([value for _, value in points], rel=1e-5, nan_ok=True), key


def test_a_resumed_run_is_one_curve(folders, tmp_path, monkeypatch):
    """Killed after its checkpoint at step 2 had reported step 3: TensorBoard shows each step once."""
    from multiref.training.online import OnlineTrainer

    run, step = {**task("online", folders, tmp_path, steps=4), "report_to": ["tensorboard"]}, OnlineTrainer._one_step
    run["training"]["save_every"] = 2

    def dies(self):
        if self.step == 3:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(OnlineTrainer, "_one_step", dies)
    with pytest.raises(KeyboardInterrupt):
        do(run)
    monkeypatch.setattr(OnlineTrainer, "_one_step", step)
    assert [at for at, _ in scalars(do(run))["kl"]] == [1, 2, 3, 4]


def test_a_tracker_that_breaks_does_not_stop_the_run(tmp_path):
    (tmp_path / "run").mkdir()
    report = trackers.open_trackers(["tensorboard"], tmp_path / "run", {"beta": 0.1, "references": [{"name": "a"}]}, after=-1)
    report({"step": 1, "loss": 0.5, "flag": True, "words": "x"})
    for file in (tmp_path / "run" / "tensorboard").glob("events*"):
        assert file.is_file()
    breaks = {"aim": type("Breaks", (), {"__init__": lambda self, name: None, "store_init_configuration": print,
                                         "log": lambda self, values, step: 1 / 0})}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("accelerate.tracking.LOGGER_TYPE_TO_CLASS", breaks)
        report = trackers.open_trackers(["aim"], tmp_path / "run", {}, after=-1)
    with pytest.warns(MultirefWarning, match="aim takes no more lines .*ZeroDivisionError"):
        report({"step": 1, "loss": 0.5})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report({"step": 2, "loss": 0.5})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"report_to": "tensorbored"}, r"report_to.*'tensorbored'.*did you mean `tensorboard`"),
        ({"training": {"report_to": "tensorboard"}}, "every task has it"),
        ({"training": {"push_to_hub": True}}, "every task has it"),
        ({"push_to_hub": "no/such/name"}, "owner/name"),
        ({"push_to_hub": {"repo": "me/made", "token": TOKEN}}, "env:NAME or file:PATH"),
    ],
    ids=["tracker", "training", "hub of training", "name", "token"],
)
def test_mistakes_are_named(folders, tmp_path, change, words):
    with pytest.raises(ConfigError, match=words) as found:
        settings({**task("preference", folders, tmp_path), **change})
    assert TOKEN not in str(found.value)


def test_what_is_missing_is_said_before_anything_is_written(folders, tmp_path, monkeypatch):
    run = task("online", folders, tmp_path)
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [])
    with pytest.raises(ConfigError, match="pip install wandb"):
        do({**run, "report_to": ["wandb"]})
    monkeypatch.delenv("NO_SUCH_TOKEN", raising=False)
    with pytest.raises(ConfigError, match=r"push_to_hub\.token.*NO_SUCH_TOKEN"):
        do({**run, "push_to_hub": {"repo": "me/made", "token": "env:NO_SUCH_TOKEN"}})
    assert not (tmp_path / "run").exists()


def test_model_and_card_are_pushed_once_and_the_token_is_nowhere(folders, tmp_path, monkeypatch):
    """The hub refuses: the model stays, the error hides the token; run again, and it is pushed; a third call asks nothing."""
    monkeypatch.setenv("OUR_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # the hub is on this machine
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # and has no chunk store
    said: list[str] = []
    with hub_double() as hub:
        to = {"repo": "me/made", "token": "env:OUR_TOKEN", "endpoint": hub.endpoint}
        run = {**task("online", folders, tmp_path, steps=1), "push_to_hub": to}
        hub.refuse = True
        with pytest.raises(OutputError, match="push_to_hub: me/made was not written") as found:
            do(run, say=said.append)
        assert TOKEN not in str(found.value) and (tmp_path / "run" / "model" / "model.safetensors").exists()
        hub.refuse = False
        folder = do(run, say=said.append)
        assert hub.files.keys() == {path.name for path in (folder / "model").iterdir()} and hub.created[0]["name"] == "made"
        for name, content in hub.files.items():
            assert content == (folder / "model" / name).read_bytes()
        assert b"other" in hub.files["README.md"] and hub.tokens == {TOKEN}
        assert hub.created[0].get("private") is True or hub.created[0]["visibility"] == "private"  # older, newer clients
        asked = len(hub.asked)
        do(run, say=said.append)
        assert len(hub.asked) == asked
        do({**run, "push_to_hub": {**to, "repo": "me/again"}}, say=said.append)
        assert len(hub.asked) > asked
    assert any(line.startswith("Pushed to http://127.0.0.1") for line in said) and TOKEN not in "".join(said)
    assert not any(TOKEN.encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_the_page_s_sentence_speaks_of_an_error_where_it_shows_one():
    """A mean of one logged step has none; of two steps each, 0 and 2, it is 1."""
    facts = SimpleNamespace(curves={"reward": ("reward",)}, held_out=0)
    one, ten = ([{"reward": value} for value in values] for values in ([0.25, 0.5], [0.0, 2.0] * 5))
    assert _answer(facts, one)[1] == "reward: 0.500 over the last fifth of the logged steps, after 0.250 over the first."
    assert _answer(facts, ten)[1].endswith("after 1.000 ± 1.000 over the first (± one standard error over steps).")
