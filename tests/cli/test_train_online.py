"""`multiref train` with `task: online` and `task: distill`: a folder with everything, resumed exactly, mistakes named."""

import copy
import json
from pathlib import Path

import pytest
import yaml

from multiref.errors import ConfigError, DataError
from multiref.runs.execute_online import execute_online
from tests.conftest import make_llama, make_tokenizer


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    tokenizer, made = make_tokenizer(chat=True), {}
    for seed, name in enumerate(("policy", "other")):
        folder = tmp_path_factory.mktemp(name)
        make_llama(len(tokenizer), seed=seed, std=0.1).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        made[name] = str(folder)
    return made


@pytest.fixture
def config(folders, tmp_path):
    problems = tmp_path / "problems.jsonl"
    problems.write_text(
        "".join(json.dumps({"question": f"what is {n} plus {n}?", "answer": f"it is\n#### {2 * n}"}) + "\n" for n in range(4))
    )
    return {
        "task": "online", "model": folders["policy"], "beta": 0.1, "output": str(tmp_path / "run"),
        "references": [{"name": "policy", "model": folders["policy"], "weight": 0.5}, {"name": "other", "model": folders["other"], "weight": 0.5}],
        "prompts": [{"path": str(problems), "kind": "gsm8k", "style": "plain"}], "rewards": [{"kind": "gsm8k"}, {"kind": "length", "target": 3}],
        "method": {"name": "rloo", "group": 2}, "evaluation": {"prompts": [{"path": str(problems), "kind": "gsm8k", "style": "plain"}], "samples": 2, "k": [1, 2]},
        "training": {"steps": 4, "prompts_per_step": 2, "max_new_tokens": 4, "learning_rate": 1e-3, "save_every": 1},
    }  # fmt: skip


def test_a_run_leaves_a_folder_and_a_killed_one_goes_on_to_the_same_end(config, tmp_path, monkeypatch):
    said = []
    folder = execute_online(config, "run.yaml", say=said.append)
    assert "Optimum of this rule" in "\n".join(said)
    assert {"config.yaml", "metrics.jsonl", "evaluation.json", "model", "checkpoints"} <= {
        path.name for path in folder.iterdir()
    }
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and {"kl/policy", "kl/other", "rewards/length/mean"} <= set(
        lines[0]
    )
    figures = json.loads((folder / "evaluation.json").read_text())
    assert set(figures) == {"before", "after"} and {"pass@1", "pass@2", "reward"} <= set(figures["after"])

    from multiref.training.online import OnlineTrainer

    step = OnlineTrainer._one_step

    def dies(self):
        if self.step == 2:
            raise KeyboardInterrupt
        return step(self)

    again = {**config, "output": str(tmp_path / "killed")}
    monkeypatch.setattr(OnlineTrainer, "_one_step", dies)
    with pytest.raises(KeyboardInterrupt):
        execute_online(again, "run.yaml", say=said.append)
    monkeypatch.setattr(OnlineTrainer, "_one_step", step)
    killed = execute_online(again, "run.yaml", say=said.append)
    assert (killed / "model" / "model.safetensors").read_bytes() == (folder / "model" / "model.safetensors").read_bytes()
    assert [json.loads(line) for line in (killed / "metrics.jsonl").read_text().splitlines()] == lines
    execute_online(again, "run.yaml", say=said.append)
    assert "nothing to do" in said[-1]


def test_distillation_with_routed_prompts(config, folders, tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("the cat sat on the mat\n\nOnce upon a time there was\n")
    for reference in config["references"]:
        del reference["weight"]
    run = {key: value for key, value in config.items() if key not in ("rewards", "evaluation")} | {
        "task": "distill", "penalty": "per_token_reverse_kl", "prompts": [{"path": str(words), "words": 3, "weights": {"other": 1.0}}],
    }  # fmt: skip
    folder = execute_online(run, "run.yaml", say=lambda text: None)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    half = {
        "method": {"name": "reinforce"},
        "text_share": 0.5,
        "output": str(tmp_path / "half"),
        "evaluation": {"prompts": run["prompts"]},
    }
    figures = json.loads((execute_online({**run, **half}, "run.yaml", say=lambda text: None) / "evaluation.json").read_text())
    assert set(figures["after"]) == {"words/student", "words/policy", "words/other"}
    assert figures["before"]["words/student"] == pytest.approx(figures["before"]["words/policy"])
    assert all(line["kl"] == pytest.approx(line["kl/other"]) for line in lines)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": "offline"}, "expected online, distill"),
        ({"rewards": []}, "task: distill"),
        ({"task": "distill"}, "distillation has none"),
        ({"text_share": 0.5}, "text_share"),
        ({"rewards": [{"kind": "gsm9k"}]}, "rewards.kind: found 'gsm9k'"),
        ({"method": {"name": "rlo"}}, "did you mean `rloo`"),
        ({"method": {"name": "rloo", "grp": 4}}, "did you mean `group`"),
        ({"training": {"lr": 1e-3}}, "training.lr: unknown key"),
        ({"regularizer": "ReversKL"}, "did you mean `ReverseKL`"),
        ({"rewards": [{"kind": "lexicon"}]}, "needs a path"),
        ({"warm_up": {"share": 0.5}}, "warm_up: expected only with task: distill"),
        ({"task": "distill", "rewards": [], "warm_up": {"share": 0.5}}, "one completion a prompt"),
        ({"start": "product"}, "with task: distill"),
        ({"task": "distill", "rewards": [], "start": "wide"}, "found 'wide'"),
        ({"server": {"endpoint": "http://127.0.0.1:1/v1"}}, "server: expected with lora"),
    ],
)
def test_mistakes_are_named(config, change, words):
    with pytest.raises(ConfigError, match=words):
        execute_online({**config, **change}, "run.yaml", say=lambda text: None)


def test_prompts_that_cannot_be_read_are_named(config, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\nnot json\n')
    with pytest.raises(DataError, match=r"bad\.jsonl:2"):
        execute_online({**config, "prompts": [{"path": str(bad)}]}, "run.yaml", say=lambda text: None)
    with pytest.raises(DataError, match="cannot be read"):
        execute_online({**config, "prompts": [{"path": str(tmp_path / "none.jsonl")}]}, "run.yaml", say=lambda text: None)


def test_a_warm_up_and_the_floor(config, folders, tmp_path):
    """The lines of the warm-up know no KL, those after it do; evaluation.json has what is reached beside the floor, before and after."""
    words = tmp_path / "words.txt"
    words.write_text("the cat sat on\n\nthe mat and the dog sat on the log\n\nOnce upon a time there was a dog\n")
    run = {key: value for key, value in config.items() if key != "rewards"} | {
        "task": "distill", "penalty": "full_vocabulary", "method": {"name": "reinforce"}, "beta": 1.0, "warm_up": {"share": 0.5, "max_new_tokens": 6},
        "prompts": [{"path": str(words), "words": 2, "pieces": 10}], "evaluation": {"prompts": [{"path": str(words), "words": 2}], "floor": 2, "samples": 4, "particles": 16},
    }  # fmt: skip
    said = []
    folder = execute_online(run, "run.yaml", say=said.append)
    assert "Warm-up: 2 of 4 steps under per_token_forward_kl" in "\n".join(said)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert ["kl" in line for line in lines] == [False, False, True, True] and all(
        "divergence/per_token" in line for line in lines
    )
    figures = json.loads((folder / "evaluation.json").read_text())
    assert {"words/kl", "words/floor", "words/kl/floor", "words/student"} <= set(figures["before"]) & set(figures["after"])
    no_text = {**run, "prompts": [{"path": str(words)}], "output": str(tmp_path / "none")}
    with pytest.raises(ConfigError, match="need texts that follow"):
        execute_online(no_text, "run.yaml", say=said.append)


def test_a_student_that_is_a_product_of_its_teachers(config, folders, tmp_path):
    """Two experts, completions in groups, no texts; the floor is found once, and the model folder opens."""
    from multiref.models import load

    words = tmp_path / "words.txt"
    words.write_text("the cat sat on\n\nthe mat and the dog\n")
    run = {key: value for key, value in config.items() if key != "rewards"} | {
        "task": "distill", "penalty": "full_vocabulary", "beta": 1.0, "start": "product",
        "prompts": [{"path": str(words)}], "evaluation": {"prompts": [{"path": str(words), "words": 2}], "floor": 2, "samples": 4, "particles": 16},
    }  # fmt: skip
    folder = execute_online(run, "run.yaml", say=lambda text: None)
    figures = json.loads((folder / "evaluation.json").read_text())
    assert figures["before"]["words/floor"] == figures["after"]["words/floor"]
    assert len(load(folder / "model").model.experts) == 2
    for wrong, said in (({"skip": 9}, "9 that are skipped"), ({}, "no text that follows")):
        with pytest.raises(ConfigError, match=said):  # before anything is loaded or written
            execute_online(
                {**run, "evaluation": {"prompts": [{"path": str(words), **wrong}]}, "output": str(tmp_path / "no")}, "run.yaml"
            )
        assert not (tmp_path / "no").exists()
    remote = [{"name": "far", "endpoint": "http://127.0.0.1:9/v1", "weight": 1.0}]
    with pytest.raises(ConfigError, match="model folders"):
        execute_online({**run, "references": remote, "output": str(tmp_path / "far")}, "run.yaml", say=lambda text: None)


def _run_of(config, **changes):
    from multiref.runs.config import build
    from multiref.runs.settings_online import OnlineRun

    return build(OnlineRun, {**config, **changes}, "run.yaml")


def test_a_product_opens_its_references_as_the_run_names_them(config, monkeypatch):
    """The pinned revision is what is copied; what cannot be copied and trained is refused."""
    from multiref.models import loading
    from multiref.runs.execute_online import _product

    real, asked = loading.load, []

    def load(path, **options):
        asked.append(options)
        return real(path, dtype=options["dtype"])

    monkeypatch.setattr("multiref.models.load", load, raising=False)
    first, second = config["references"]
    _product(_run_of(config, references=[{**first, "revision": "v1"}, second]))
    assert [options["revision"] for options in asked] == ["v1", None]
    with pytest.raises(ConfigError, match="without adapters or quantization"):
        _product(_run_of(config, references=[{**first, "quantization": "int8"}, second]))


def test_evaluation_files_of_one_name_are_all_kept(config, tmp_path):
    """Also where a file is already called as a second one would be."""
    from multiref.runs.execute_online import _held_out

    sources = []
    for n, name in enumerate(("a/test-2", "b/test", "c/test")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.txt").write_text(f"prompt {n}\n")
        sources.append({"path": str(tmp_path / f"{name}.txt")})
    found = _held_out(_run_of(config, evaluation={"prompts": sources}))
    assert {name: rows[0]["prompt"] for name, rows in found.items()} == {
        "test-2": "prompt 0",
        "test": "prompt 1",
        "test-3": "prompt 2",
    }


def test_a_run_whose_completions_a_server_draws(config, folders, tmp_path):
    """A LoRA policy, pushed at every step: what the server draws is on-policy, so that the ratio is one; the model folder holds the adapter."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from tests.training.online.sampling_server import sampling

    base = AutoModelForCausalLM.from_pretrained(folders["policy"]).eval()
    open_adapter = lambda path: PeftModel.from_pretrained(copy.deepcopy(base), path).eval()  # noqa: E731
    with sampling(base, opener=open_adapter) as server:
        run = {
            **config,
            "lora": {"r": 2, "target_modules": ["q_proj"]},
            "server": {"endpoint": server.endpoint},
            "evaluation": None,
        }
        run["training"] = {**config["training"], "learning_rate": 0.1}
        folder = execute_online(run, "run.yaml", say=lambda text: None)
        loads = [body["lora_path"] for path, body in server.requests if path == "load_lora_adapter"]
    assert len(loads) == len(set(loads)) == 4
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(line["sampling_ratio"] == pytest.approx(1, abs=1e-4) for line in lines)
    assert (folder / "model" / "adapter_config.json").exists()


def test_prompts_and_the_texts_that_follow_them(config, tmp_path):
    from multiref.runs.prompts import rows_of
    from multiref.runs.settings_online import Prompts

    words = tmp_path / "words.txt"
    words.write_text("one two\n\nthree four five\n\nsix\n\nseven eight\n")
    rows = rows_of(Prompts(str(words), words=1, pieces=10), [])
    assert rows == [
        {"prompt": "one", "text": " two\n\nthree four five", "unfinished": True},
        {"prompt": "six\n\nseven", "text": " eight", "unfinished": True},
    ]
    with pytest.raises(ConfigError, match="none beyond the 4 that are skipped"):
        rows_of(Prompts(str(words), skip=4), [])
    (first, *_) = rows_of(Prompts(config["prompts"][0]["path"], kind="gsm8k", words=2, weights={"b": 1.0}), ["a", "b"])
    assert first == {"prompt": "what is", "text": " 0 plus 0?\nit is\n#### 0", "unfinished": False, "weights": [0.0, 1.0]}


@pytest.mark.parametrize("name", ["gsm8k-0.5b", "online-stories", "distill", "distill-mixed"])
def test_recipes_are_complete(name):
    from multiref.runs.config import build
    from multiref.runs.settings_online import OnlineRun

    path = Path(__file__).parents[2] / "recipes" / f"{name}.yaml"
    run = build(OnlineRun, yaml.safe_load(path.read_text()), str(path))
    from multiref.runs.execute_online import _made, _method
    from multiref.training.online import OnlineArguments

    _made(
        OnlineArguments,
        {k: float(v) if isinstance(v, str) and k == "learning_rate" else v for k, v in run.training.items()},
        "training",
    )
    assert _method(run).group >= 1
