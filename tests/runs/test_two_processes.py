"""Runs under a launcher: two processes on gloo leave one folder, whole, and nothing beside it; what is saved of a sharded model
is what was trained."""

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


def launch(config, tmp_path, *extra, program=("-m", "multiref.cli")):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**config, "output": str(tmp_path / "run")}), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [*program, "train", "--config", str(tmp_path / "run.yaml"), *extra]
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
        "models.json",
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


# accelerate shards on accelerators alone: two processes on the CPU are to pass for such
SHARDING = """
from accelerate import PartialState, state
from accelerate.utils import DistributedType
real_init = state.AcceleratorState.__init__
def init(self, *arguments, **options):
    if PartialState._shared_state.get("distributed_type") == DistributedType.MULTI_CPU:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_XPU
    real_init(self, *arguments, **options)
state.AcceleratorState.__init__ = init
"""
WATCHING = """
import multiref.runs.pairs as pairs
real_remember = pairs.TrainerJob.remember
def remember(self):
    print(f"sharded: {type(next(self.model.parameters())).__name__}\\n", end="", flush=True)  # in one piece
    return real_remember(self)
pairs.TrainerJob.remember = remember
"""
FORGETFUL = """
from transformers import LlamaForCausalLM
real = LlamaForCausalLM.save_pretrained
def forgetful(self, folder, state_dict=None, **options):
    name = "model.layers.0.self_attn.q_proj.weight"
    real(self, folder, state_dict={**state_dict, name: state_dict[name] * 1.01}, **options)
LlamaForCausalLM.save_pretrained = forgetful
"""
CALL = """
from multiref.cli import app
app()
"""


@pytest.fixture
def sharded(config, tmp_path):
    """A preference run under FSDP2."""
    rows = [{"prompt": f"what is {w}?", "chosen": f" {w} is raining", "rejected": f" {w}"} for w in ("the cat", "a dog", "two")]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shards = {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}
    return {
        "model": config["model"],
        "references": config["references"],
        "beta": 0.1,
        "data": str(tmp_path / "pairs.jsonl"),
        "training": {
            "per_device_train_batch_size": 1, "max_steps": 3, "learning_rate": 1e-2, "use_cpu": True, "ddp_backend": "gloo",
            "fsdp": "full_shard", "fsdp_config": shards,
        },
    }  # fmt: skip


@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_a_sharded_run_comes_back_as_it_was_trained(sharded, lora, tmp_path):
    (tmp_path / "program.py").write_text(SHARDING + WATCHING + CALL)
    done = launch({**sharded, "lora": lora}, tmp_path, program=[str(tmp_path / "program.py")])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("sharded: DTensor") == 2
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "6 rows scored in memory and from the saved folder (cpu)" in card


def test_what_a_sharded_run_does_not_save_whole(sharded, tmp_path):
    """One matrix off by a hundredth: the main process says so, and the other does not wait for it."""
    (tmp_path / "program.py").write_text(SHARDING + FORGETFUL + CALL)
    done = launch(sharded, tmp_path, program=[str(tmp_path / "program.py")])
    assert done.returncode != 0 and "What was saved is not what was trained" in " ".join(done.stderr.split())
    assert (tmp_path / "run" / "model.refused").exists() and not (tmp_path / "run" / "model").exists()
