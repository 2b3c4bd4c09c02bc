"""`make chaos` in small: each verb killed, run again, and compared bit for bit with a run that nobody disturbed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.jobs import JOBS

OFTEN = ("score",)  # the others take longer than `make test` has


@pytest.mark.parametrize("verb", [pytest.param(verb, marks=[] if verb in OFTEN else pytest.mark.slow) for verb in JOBS])
def test_a_killed_verb_ends_as_one_that_nobody_disturbed(verb):
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--verb", verb, "--kills", "1" if verb in OFTEN else "4", "--row", "2"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
