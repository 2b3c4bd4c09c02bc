"""A disk that takes no more, whoever was writing: one line, exit code 2, and what is finished is kept."""

import errno
import os
import resource
import subprocess
import sys

import pytest
from safetensors import SafetensorError

from multiref.runs.execute import _disk
from tests.chaos.jobs import JOBS, make_world


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "x"), "x"),
        (PermissionError(errno.EACCES, "denied"), "denied"),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "No space left"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/1"), "no more"),
        (FileNotFoundError(errno.ENOENT, "y"), None),
        (RuntimeError("shapes do not match"), None),
    ],
    ids=["full", "denied", "safetensors", "torch", "missing", "other"],
)
def test_what_is_said_of_the_disk(error, words):
    said = _disk(error)
    assert said is None if words is None else words in str(said)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["preference", "online", "bilevel", "evaluate", "frontier", "score"])
def test_files_that_may_not_grow(verb, tmp_path):
    """The system refuses to let any file grow beyond so many bytes: writes fail after they began, in code of others too."""
    make_world(tmp_path)
    out, limits = (
        tmp_path / "out",
        {"preference": 30_000, "online": 30_000, "bilevel": 9_000, "evaluate": 1_500, "score": 1_000},
    )
    out.mkdir()
    size = limits.get(verb, 600)
    command = [sys.executable, "-m", "multiref.cli", *JOBS[verb](out)]
    # Python would leave cut bytecode of ours behind (a short write is no error to it), and fail by it from then on.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=environment,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr and "Error: " in done.stderr, done.stderr
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert again.returncode == 0, again.stderr
