"""One side of a comparison in a process of its own, so that its peak of memory is its own."""

import json
import os
import resource
import subprocess
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

QUIET = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TQDM_DISABLE": "1"}


def run_side(script: str, side: str, options: Namespace, **changes: Any) -> dict[str, Any]:
    """What `script --side SIDE` prints as JSON on its last line, under the same options but for `changes`."""
    given = {key: value for key, value in (vars(options) | changes).items() if key != "side" and value is not None}
    flags = [text for key, value in given.items() for text in (f"--{key.replace('_', '-')}", str(value))]
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, **QUIET, "HF_DATASETS_CACHE": cache, "OMP_NUM_THREADS": str(given.get("threads", 2))}
        done = subprocess.run([sys.executable, script, "--side", side, *flags], env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def peak_mib() -> float:
    """Linux's VmHWM is of this program alone; ru_maxrss also remembers the process that it was forked from."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
