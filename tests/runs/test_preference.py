"""`multiref train`: a run folder from one YAML file, resumable, and one clear message for what cannot work."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from multiref.cli import app
from multiref.errors import MultirefWarning
from multiref.runs import read_run
from multiref.runs.document import Document
from multiref.training.sums import damage
from tests.conftest import make_llama
from tests.runs.doing import WORDS, do


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_tokenizer):
    """Three tiny model folders and a file of pairs."""
    folder = tmp_path_factory.mktemp("world")
    for seed, name in enumerate(("policy", "first", "second")):
        make_llama(len(tiny_tokenizer), seed=seed, std=0.1).save_pretrained(folder / name)
        tiny_tokenizer.save_pretrained(folder / name)
    rows = [{"prompt": f"what is {w}?", "chosen": f" {w} is raining", "rejected": f" the {w} sat"} for w in WORDS]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture
def config(world, tmp_path):
    return {
        "model": str(world / "policy"),
        "references": [
            {"name": "first", "model": str(world / "first"), "weight": 0.25},
            {"name": "second", "model": str(world / "second"), "weight": 0.75},
        ],
        "beta": 0.2,
        "data": str(world / "pairs.jsonl"),
        "evaluation": {"fraction": 0.25},
        "output": str(tmp_path / "run"),
        "training": {
            "learning_rate": 1e-3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 4,
            "logging_steps": 1,
            "save_steps": 3, "eval_strategy": "steps", "eval_steps": 3, "use_cpu": True,
        },
    }  # fmt: skip


def written(config, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {(line["step"], key): line[key] for line in lines for key in ("loss", "eval_loss", "rewards/margins") if key in line}


class Killed(Exception):
    pass


def killing(at):
    def say(text):
        if text.startswith(f"step {at}/") and "held out" not in text:
            raise Killed

    return say


def test_a_run_leaves_a_folder_that_says_everything(config, tmp_path, world, drawn):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = CliRunner().invoke(app, ["train", "--config", str(written(config, tmp_path)), "--set", "beta=0.5"])
    assert result.exit_code == 0, result.output
    folder = tmp_path / "run"
    resolved = yaml.safe_load((folder / "config.yaml").read_text())
    assert resolved["beta"] == 0.5 and resolved["tokenisation"]["truncation"] == "keep_start" and resolved["format"] == 2
    assert json.loads((folder / "versions.json").read_text())["torch"]
    AutoTokenizer.from_pretrained(folder / "model")
    trained = AutoModelForCausalLM.from_pretrained(folder / "model")
    start = AutoModelForCausalLM.from_pretrained(world / "policy")
    assert any(not a.equal(b) for a, b in zip(trained.parameters(), start.parameters()))
    card = (folder / "model" / "README.md").read_text()
    for word in ("first", "second", "0.25", "0.75", "ReverseKL", "0.5", "pairs.jsonl", "rewards/accuracies"):
        assert word in card, word
    page = (folder / "report.html").read_text()
    assert "<svg" in page or "data:image" in page
    assert not list(folder.rglob("training_args.bin")) and not list(folder.rglob("*.pkl"))
    names = {key for line in (folder / "metrics.jsonl").read_text().splitlines() for key in json.loads(line)}
    assert {"kl/first", "weights/second", "eval_reward_gap", "eval_rewards/accuracies"} <= names


def test_the_figures_of_a_run_are_of_the_model_that_is_saved(config):
    """The best by a metric that only gets worse: the first that was evaluated, and what the card says of held-out pairs."""
    best = {"load_best_model_at_end": True, "metric_for_best_model": "rewards/margins", "greater_is_better": False}
    config["training"] |= {**best, "learning_rate": 1e-2}
    folder = do(config)
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    margins = [line["eval_rewards/margins"] for line in found if "eval_rewards/margins" in line]
    assert margins[-1] == pytest.approx(margins[0]) and margins[-2] > margins[0] + 1e-3
    assert f"| eval\\_rewards/margins | {margins[-1]:.6g} |" in (folder / "model" / "README.md").read_text()


def test_an_interrupted_run_goes_on_exactly_and_a_finished_one_is_left_alone(config, tmp_path):
    whole = do({**config, "output": str(tmp_path / "whole")}, say=lambda _: None)
    with pytest.raises(Killed):
        do(config, say=killing(at=8))
    folder = tmp_path / "run"
    assert not (folder / "model").exists()
    assert damage(folder / "checkpoints" / "checkpoint-6") is None
    (folder / "checkpoints" / "checkpoint-8").mkdir()  # a checkpoint that the kill cut short
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 8, "lo')
    do(config, say=lambda _: None)
    expected, found = losses(whole), losses(folder)
    assert found.keys() == expected.keys() and len(expected) > 20
    assert found == pytest.approx(expected, abs=1e-6)
    before = (folder / "model" / "model.safetensors").stat().st_mtime_ns
    said = []
    do(config, say=said.append)
    assert "nothing to do" in said[0]
    assert (folder / "model" / "model.safetensors").stat().st_mtime_ns == before


def spoil_weights(checkpoint):
    content = bytearray((checkpoint / "model.safetensors").read_bytes())
    content[-100] ^= 4
    (checkpoint / "model.safetensors").write_bytes(content)


def spoil_scheduler(checkpoint):
    (checkpoint / "scheduler.pt").unlink()
    (checkpoint / "scheduler.pt").mkdir()


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [spoil_weights, spoil_scheduler])
def test_a_checkpoint_that_changed_is_named_and_the_one_before_gives_the_same_bits(spoil, config, tmp_path):
    """One bit of the weights gave other numbers without a word, and a scheduler that is a folder another schedule."""
    whole = do({**config, "output": str(tmp_path / "whole")}, say=lambda _: None)
    with pytest.raises(Killed):
        do(config, say=killing(at=10))
    checkpoints = sorted((tmp_path / "run" / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    assert len(checkpoints) == 2
    (tmp_path / "run" / "checkpoints" / "checkpoint-foo").mkdir()
    spoil(checkpoints[-1])
    said = []
    again = do(config, say=said.append)
    assert any(line.startswith(f"{checkpoints[-1].name} is not used: ") for line in said)
    assert f"Going on from step {checkpoints[0].name[11:]}." in said
    assert losses(again) == losses(whole)
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (whole, again)]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_a_process_that_is_killed_outright_goes_on_exactly(config, tmp_path):
    """SIGKILL once the first checkpoint is there; the same command again."""
    config["training"]["num_train_epochs"] = 40
    whole = do({**config, "output": str(tmp_path / "whole")}, say=lambda _: None)
    command = [sys.executable, "-m", "multiref.cli", "train", "--config", str(written(config, tmp_path))]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    folder = tmp_path / "run"
    while process.poll() is None and not (folder / "checkpoints" / "checkpoint-6").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "model").exists()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert losses(folder) == pytest.approx(losses(whole), abs=1e-6)


@pytest.mark.slow
def test_two_processes_leave_the_same_run(config, tmp_path):
    """The command under a launcher: one folder, one curve, one model; half the batch on each of two processes."""
    one = do({**config, "output": str(tmp_path / "one")}, say=lambda _: None)
    config["training"] |= {"per_device_train_batch_size": 1, "ddp_backend": "gloo"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, "-m", "multiref.cli", "train", "--config", str(written(config, tmp_path))]
    said = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ).stdout
    assert said.count("Model:") == 1 and said.count("held out; references") == 1
    assert losses(tmp_path / "run") == pytest.approx(losses(one), abs=1e-5)
    assert (tmp_path / "run" / "model" / "model.safetensors").exists() and (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"betta": 0.1}, ["run.yaml", "betta", "did you mean `beta`"]),
        ({"training": {"lerning_rate": 1}}, ["training.lerning_rate", "learning_rate"]),
        ({"training": {"output_dir": "x"}}, ["output"]),
        ({"references": [{"name": "a"}]}, ["'a'", "model or an endpoint"]),
        ({"references": [{"model": "a"}]}, ["run.yaml:", "references[0].name", "missing"]),
        ({"references": [{"name": "a", "model": "x", "wieght": 1}]}, ["references[0].wieght", "weight"]),
        ({"beta": "much"}, ["beta", "'much'", "a number"]),
        ({"beta": -1}, ["beta", "-1"]),
        ({"regularizer": "ReversKL"}, ["ReversKL", "ReverseKL"]),
        ({"objective": "mropo"}, ["mropo", "mrpo"]),
        ({"weighting": "vdw"}, ["weighting", "weights of their own"]),
        (
            {"objective": "renormalised_tokens", "references": [{"name": "a", "model": "m", "tokenisation": {"end": False}}]},
            ["references: tokenisation", "under the run's"],
        ),
        ({"model": "/nowhere/at/all"}, ["/nowhere/at/all"]),
        ({"data": "/nowhere.jsonl"}, ["/nowhere.jsonl"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_work_is_one_message_and_exit_code_two(change, words, config, tmp_path, world):
    result = CliRunner().invoke(app, ["train", "--config", str(written({**config, **change}, tmp_path))])
    assert result.exit_code == 2, result.output
    text = result.output
    assert text.startswith("Error: ") and text.count("\n") == 1
    for word in words:
        assert word in text, text
    assert not (tmp_path / "run" / "model").exists()


def test_weights_off_the_simplex_and_an_unwritable_folder(config, tmp_path):
    config["references"][0]["weight"] = 0.5
    result = CliRunner().invoke(app, ["train", "--config", str(written(config, tmp_path))])
    assert result.exit_code == 2 and "1.25" in result.output
    (tmp_path / "file").write_text("")
    config["references"][0]["weight"] = 0.25
    result = CliRunner().invoke(
        app, ["train", "-c", str(written({**config, "output": str(tmp_path / "file" / "run")}, tmp_path))]
    )
    assert result.exit_code == 2 and "cannot write" in result.output


def test_a_folder_of_another_run_is_not_overwritten(config, tmp_path):
    with pytest.raises(Killed):
        do(config, say=killing(at=1))
    result = CliRunner().invoke(app, ["train", "-c", str(written(config, tmp_path)), "--set", "training.seed=3"])
    assert result.exit_code == 2
    assert "training.seed was None and is now 3" in result.output


def test_an_evaluation_set_that_overlaps_is_warned_of_with_the_count(config, world):
    config["evaluation"] = {"path": config["data"], "limit": 5}
    config["training"]["max_steps"] = 1
    with pytest.warns(MultirefWarning, match="5 of 5 held-out pairs"):
        do(config, say=lambda _: None)


@pytest.mark.parametrize(
    "weighting",
    [
        {"kind": "sliding_window", "window": 2},
        *(
            pytest.param(w, marks=pytest.mark.slow)
            for w in ("vdw", "vaw", "arwc", "convex_fit", {"kind": "thompson", "hold": 1})
        ),
    ],
    ids=str,
)
def test_strategies_choose_the_weights_and_survive_a_restart(weighting, config, tmp_path):
    """The weights that are reported stay on the simplex, and a killed run goes on with the same ones."""
    for reference in config["references"]:
        del reference["weight"]
    config |= {"weighting": weighting}
    config["training"] |= {"num_train_epochs": 2, "save_steps": 2}
    whole = do({**config, "output": str(tmp_path / "whole")}, say=lambda _: None)
    with pytest.raises(Killed):
        do(config, say=killing(at=4))
    folder = do(config, say=lambda _: None)
    assert losses(folder) == pytest.approx(losses(whole), abs=1e-6)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    sums = [line["weights/first"] + line["weights/second"] for line in lines if "weights/first" in line]
    assert sums == pytest.approx([1.0] * len(sums))


def test_settings_laid_over_and_numbers_read_as_numbers(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("beta: 1e-1\nreferences:\n- {name: a, model: x}\ntraining: {learning_rate: 5e-7}\n", encoding="utf-8")
    found = Document.read(path).set(["training.learning_rate=1e-5", "references.0.model=y", "lora.r=4"])
    assert found.values == {
        "beta": 0.1,
        "references": [{"name": "a", "model": "y"}],
        "training": {"learning_rate": 1e-5},
        "lora": {"r": 4},
    }


RECIPES = Path(__file__).parents[2] / "recipes"
OURS = [
    "two-references",
    "three-tokenizers",
    "adapters",
    "single-reference",
    "ultrafeedback-0.5b",
    "ultrafeedback-7b",
    "private",
    "real-pairs",
]


@pytest.mark.parametrize("name", OURS)
def test_recipes_say_only_what_a_run_knows(name):
    assert read_run(RECIPES / f"{name}.yaml").task == "preference"


def test_the_ultrafeedback_recipe_runs_on_small_folders(config, tmp_path, world):
    """The same file with `--set` to local folders: conversations without a prompt column, bf16, a cut at max_length."""

    def talk(word, answer):
        return [{"role": "user", "content": f"what is {word}?"}, {"role": "assistant", "content": answer}]

    rows = [{"chosen": talk(w, f"{w} is raining"), "rejected": talk(w, "no")} for w in WORDS]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    changes = {
        "model.path": world / "policy", "references.0.model": world / "first", "references.1.model": world / "second",
        "data": tmp_path / "talks.jsonl",
        "evaluation.path": tmp_path / "talks.jsonl", "output": tmp_path / "run", "training.max_steps": 2,
        "training.eval_steps": 2,
        "training.logging_steps": 1, "training.use_cpu": "true",
    }  # fmt: skip
    options = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    with pytest.warns(MultirefWarning, match="held-out pairs"):
        result = CliRunner().invoke(app, ["train", "--config", str(RECIPES / "ultrafeedback-0.5b.yaml"), *options])
    assert result.exit_code == 0, result.output
    assert "held out  loss" in result.output and (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_an_adapter_run_leaves_an_adapter_on_its_base(config, tmp_path):
    from multiref.models import load

    config |= {"lora": {"r": 2, "lora_alpha": 4}}
    config["training"] |= {"max_steps": 2}
    folder = do(config, say=lambda _: None)
    assert (folder / "model" / "adapter_model.safetensors").exists() and not (folder / "model" / "model.safetensors").exists()
    again = load(folder / "model").model
    assert any("lora" in name for name, _ in again.named_parameters())
    said = []
    do(config, say=said.append)
    assert "nothing to do" in said[0]


@pytest.mark.parametrize(
    "objective",
    [
        pytest.param("multi_dpo", marks=pytest.mark.slow),
        pytest.param({"kind": "mrpo", "trust_region": 0.1, "anchor": "second", "adaptive": True}, marks=pytest.mark.slow),
        pytest.param({"kind": "renormalised_tokens"}, marks=pytest.mark.slow),
        {"kind": "preference", "length_normalised": True, "loss": "robust", "label_smoothing": 0.1},
    ],
    ids=str,
)
def test_every_objective_runs_from_the_file_and_is_named_in_the_card(objective, config):
    """Two steps each; the first loss is that of the objective itself on the same pairs at the start (not one loss for all of
    them)."""
    config |= {"objective": objective}
    config["training"] |= {"max_steps": 2}
    folder = do(config, say=lambda _: None)
    kind = objective if isinstance(objective, str) else objective["kind"]
    words = {
        "multi_dpo": "Multi-DPO",
        "mrpo": "MRPO",
        "renormalised_tokens": "token-renormalised",
        "preference": "length-normalised",
    }
    assert words[kind] in (folder / "model" / "README.md").read_text()
    first = losses(folder)[1, "loss"]
    plain = do({**config, "objective": "preference", "output": config["output"] + "-plain"}, say=lambda _: None)
    assert abs(first - losses(plain)[1, "loss"]) > 1e-4


def test_a_pair_that_fills_a_reference_s_context_is_left_out(config, world, tiny_tokenizer, tmp_path):
    """Its prompt leaves no room for a completion: nothing could be scored, whatever is cut. `too_long: drop` says so."""
    make_llama(len(tiny_tokenizer), seed=9, context=32).save_pretrained(tmp_path / "short")
    tiny_tokenizer.save_pretrained(tmp_path / "short")
    long = {"prompt": "the cat sat on the mat and " * 8, "chosen": "the dog", "rejected": "the log"}
    rows = (world / "pairs.jsonl").read_text("utf-8") + json.dumps(long) + "\n"
    (tmp_path / "pairs.jsonl").write_text(rows, encoding="utf-8")
    references = [config["references"][0], {"name": "short", "model": str(tmp_path / "short"), "weight": 0.75}]
    config |= {"data": str(tmp_path / "pairs.jsonl"), "references": references, "evaluation": None}
    config["training"] = {"max_steps": 1, "per_device_train_batch_size": 2, "use_cpu": True}
    result = CliRunner().invoke(app, ["train", "--config", str(written(config, tmp_path))])
    assert result.exit_code == 0, result.output
    assert f"Left out 1 of {len(WORDS) + 1} pairs that are longer than 32 tokens under short" in result.output
