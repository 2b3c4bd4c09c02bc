"""Two processes on one folder: one works, the other says who does and ends with exit code 2, or takes over."""

import os
import re
import subprocess
import sys
import time

import pytest
import yaml

from multiref.errors import ConfigError, ModelError, OutputError
from multiref.runs.folder import RunFolder
from tests.chaos.jobs import JOBS, make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    return folder


def start(world, out, *more, verb="online"):
    return subprocess.Popen(
        [sys.executable, "-m", "multiref.cli", *JOBS[verb](out), *more], cwd=world, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_a_folder_that_is_held_is_refused_and_one_that_was_taken_over_is_left(tmp_path):
    settings = {"format": 2, "beta": 0.1}
    one, other = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    with one.claimed(settings) as began:
        assert not began
        one.write("a.txt", "1")
        with pytest.raises(OutputError, match=rf"output: .*run is being written by process {os.getpid()} on .*--take-over"):
            other.claimed(settings).__enter__()
        with other.claimed(settings, take_over=True) as began:
            assert began
            other.append_metrics({"step": 1})
            for write in (lambda: one.write("a.txt", "2"), lambda: one.append_metrics({}), lambda: one.write_model(print)):
                with pytest.raises(OutputError, match="was taken over by process"):
                    write()
    assert (tmp_path / "run" / "a.txt").read_text() == "1" and not (tmp_path / "run" / ".lock").exists()


def test_a_run_that_never_began_leaves_the_folder_to_other_settings(tmp_path):
    """Its model was not there, say, or somebody saw that it is the wrong one. Once there is anything but the settings, the
    folder is that run's."""
    folder = RunFolder(tmp_path / "run")
    for ended in (ModelError("no such model"), KeyboardInterrupt()):
        with pytest.raises(type(ended)), folder.claimed({"format": 2, "model": f"wrong: {ended}"}):
            folder.write("versions.json", "{}")
            raise ended
    with pytest.raises(ModelError), folder.claimed({"format": 2, "model": "right"}) as began:
        assert not began
        folder.append_metrics({"step": 1})
        raise ModelError("too late")
    with (
        pytest.raises(ConfigError, match="model was 'right' and is now 'wrong'"),
        folder.claimed({"format": 2, "model": "wrong"}),
    ):
        pass
    (tmp_path / "run" / "metrics.jsonl").unlink()  # of a killed run: another's settings do not remove it
    with pytest.raises(ConfigError, match="is now 'wrong'"), folder.claimed({"format": 2, "model": "wrong"}):
        pass


def test_a_model_folder_has_the_rights_that_the_umask_leaves(tmp_path):
    folder, before = RunFolder(tmp_path), os.umask(0o027)
    try:
        folder.write_model(lambda target: (target / "config.json").write_text("{}") and None)
        assert [path.stat().st_mode & 0o777 for path in (folder.model, folder.model / "config.json")] == [0o750, 0o640]
    finally:
        os.umask(before)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["online", "preference", "evaluate", "stability"])
def test_two_processes_one_works_and_one_says_who(verb, world, tmp_path):
    """The second comes once the first holds the folder, which a breakpoint of its own keeps it in."""
    out = tmp_path / verb
    first = start(world, out, verb=verb)
    # the file is there a moment before it is locked, and says who has it once it is
    while not any(path.stat().st_size for path in out.rglob(".lock")) and first.poll() is None:
        time.sleep(0.01)
    os.kill(first.pid, 19)  # SIGSTOP: it stays in the middle
    second = start(world, out, verb=verb)
    _, said = second.communicate(timeout=300)
    assert second.returncode == 2 and re.search(rf"is being written by process {first.pid} on \S+, since ", said), said
    os.kill(first.pid, 18)
    _, errors = first.communicate(timeout=300)
    assert first.returncode == 0, errors


@pytest.mark.slow
def test_who_takes_over_finishes_and_the_other_stops(world, tmp_path):
    out = tmp_path / "run"
    first = start(world, out)
    while not (out / "metrics.jsonl").exists() and first.poll() is None:
        time.sleep(0.01)
    os.kill(first.pid, 19)
    second = start(world, out, "--take-over")
    _, errors = second.communicate(timeout=300)
    os.kill(first.pid, 18)
    _, said = first.communicate(timeout=300)
    assert second.returncode == 0 and (out / "model" / "config.json").exists(), errors
    assert first.returncode == 2 and "Error:" in said and "Traceback" not in said
    assert yaml.safe_load((out / "config.yaml").read_text())["task"] == "online"
