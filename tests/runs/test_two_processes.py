"""An online run under a launcher: two processes on gloo leave one folder, whole, and nothing beside it."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from tests.conftest import make_llama, make_tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("world"), make_tokenizer()
    for seed, name in enumerate(("policy", "other")):
        make_llama(len(tokenizer), seed=seed, std=0.1).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "prompts.txt").write_text("the cat sat on the mat\n\nOnce upon a time there was a dog\n")
    return {
        "task": "online",
        "model": str(folder / "policy"),
        "references": [{"name": name, "model": str(folder / name)} for name in ("policy", "other")],
        "beta": 0.1,
        "prompts": [{"path": str(folder / "prompts.txt"), "words": 3}],
        "rewards": [{"kind": "length", "target": 3}],
        "method": {"name": "rloo", "group": 2},
        "evaluation": {"prompts": [{"path": str(folder / "prompts.txt"), "words": 3}], "samples": 2},
        "training": {"steps": 4, "prompts_per_step": 1, "max_new_tokens": 4, "save_every": 1},
    }


def launch(config, tmp_path, *extra):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**config, "output": str(tmp_path / "run")}), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "multiref.cli", "train", "--config", str(tmp_path / "run.yaml"), *extra]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_two_processes_leave_one_folder(config, tmp_path):
    done = launch(config, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Model:") == 1 and done.stdout.count("step 4/4") == 1 and done.stdout.count("after:") == 1
    folder = tmp_path / "run"
    files = {
        "config.yaml",
        "versions.json",
        "timing.json",
        "metrics.jsonl",
        "evaluation.json",
        "checkpoints",
        "model",
        "report.html",
    }
    assert {path.name for path in folder.iterdir()} == files
    assert {"config.json", "model.safetensors", "README.md", "tokenizer.json"} <= {p.name for p in (folder / "model").iterdir()}
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]
    again = launch(config, tmp_path)
    assert again.returncode == 0 and again.stdout.count("nothing to do") == 1
    other = launch(config, tmp_path, "--set", "beta=0.2")
    assert other.returncode != 0 and "beta was 0.1 and is now 0.2" in other.stderr
