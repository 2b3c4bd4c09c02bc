"""Two processes on gloo follow the curve of one that takes the prompts of both."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_two_processes_follow_the_curve_of_one(tmp_path):
    """The same completions, 2 prompts a step on each of two processes or 4 on one:
    metrics, β (adapted to the KL of all) and weights equal to 1e-5."""
    script = Path(__file__).parent / "two_processes.py"
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[3]),
        "ACCELERATE_USE_CPU": "true",
    }
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run(
        [sys.executable, str(script), "4", str(tmp_path / "one.json"), str(tmp_path / "a")], check=True, env=environment
    )
    subprocess.run([*launch, str(script), "2", str(tmp_path / "two.json"), str(tmp_path / "b")], check=True, env=environment)
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    betas = [line["beta"] for line in one["lines"]]
    assert len(betas) == 12 and sum(0.81 < b / a < 1.19 for a, b in pairwise(betas)) > 4, (
        "β moves by what the KL says, not by its limit"
    )
    for name in ("reward", "kl", "kl/ref1", "objective", "beta", "grad_norm", "ess", "regret"):
        assert [line[name] for line in two["lines"]] == pytest.approx([line[name] for line in one["lines"]], abs=1e-5), name
    assert two["table"] == pytest.approx(one["table"], abs=1e-5)
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["checkpoint-10", "checkpoint-5"]
