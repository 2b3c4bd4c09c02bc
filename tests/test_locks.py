"""One writer at a time: who comes second waits or is told who holds it; a holder that ends lets go; one may take over."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from multiref import _locks
from multiref._locks import Held, alone
from multiref.errors import OutputError


@pytest.fixture(params=["kernel", "heartbeat"])
def kind(request, monkeypatch):
    """Locks of the kernel, and what is done on a file system that has none."""
    if request.param == "heartbeat":
        monkeypatch.setattr(_locks, "_kernel_locks", lambda folder: False)
        monkeypatch.setattr(_locks, "BEAT", 0.1)
        monkeypatch.setattr(_locks, "_PAUSE", 0.02)
    return request.param


def test_the_second_is_told_who_holds_it_and_gets_it_afterwards(kind, tmp_path):
    with alone(tmp_path / "a"):
        with (
            pytest.raises(Held, match=rf"is being written by process {os.getpid()} on .*, since 20\d\d-"),
            alone(tmp_path / "a"),
        ):
            pass
        with alone(tmp_path / "b"):
            pass
    assert not list(tmp_path.iterdir())
    with alone(tmp_path / "a") as lock:
        lock.check()


def test_the_second_waits_and_says_so_once(kind, tmp_path):
    order, said, inside = [], [], threading.Event()

    def first():
        with alone(tmp_path / "a"):
            inside.set()
            time.sleep(0.5)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait(5)
    with alone(tmp_path / "a", waiting=said.append):
        order.append("second")
    thread.join()
    assert order == ["first", "second"] and len(said) == 1 and f"process {os.getpid()} on" in said[0]


def test_who_was_taken_over_is_told_and_leaves_the_lock_alone(kind, tmp_path):
    with alone(tmp_path / "a") as first:
        with alone(tmp_path / "a", take_over=True) as second:
            second.check()
            with pytest.raises(OutputError, match="was taken over by process"):
                first.check()
        assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("there", ["", "{", "[]", '{"pid": "x"}', '{"pid": 1e99}', '{"pid": 5, "host": 3}', "9" * 5000])
def test_a_lock_file_that_says_nothing_is_no_obstacle(there, tmp_path):
    (tmp_path / "a").write_text(there)
    with alone(tmp_path / "a"), pytest.raises(Held), alone(tmp_path / "a"):
        pass


def test_a_pipe_or_a_link_in_its_place_is_an_error_and_nothing_waits(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "link", "folder"):
        with pytest.raises(OSError), alone(tmp_path / name):
            pass
    assert not (tmp_path / "elsewhere").exists()


HOLD = """
import sys, time
from pathlib import Path
from multiref import _locks
if sys.argv[2] == "heartbeat":
    _locks._kernel_locks = lambda folder: False
with _locks.alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_holder_that_is_killed_lets_go(kind, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "a", kind], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(Held, match=f"process {process.pid} on"), alone(tmp_path / "a"):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (tmp_path / "a").exists()
    with alone(tmp_path / "a"):
        pass


def test_a_heartbeat_from_another_machine_counts_until_it_stops(tmp_path, monkeypatch):
    """Nobody can ask whether that process runs: its file is watched."""
    monkeypatch.setattr(_locks, "_kernel_locks", lambda folder: False)
    monkeypatch.setattr(_locks, "BEAT", 0.1)
    monkeypatch.setattr(_locks, "_PAUSE", 0.02)
    there = '{"pid": 7, "host": "elsewhere", "since": "2026-01-01", "space": ""}'
    (tmp_path / "a").write_text(there)
    began = time.monotonic()
    with alone(tmp_path / "a"):
        assert time.monotonic() - began > 0.3
    (tmp_path / "a").write_text(there)
    timer = threading.Timer(0.1, lambda: os.utime(tmp_path / "a", (1, 1)))
    timer.start()
    with pytest.raises(Held, match="process 7 on elsewhere, since 2026-01-01"), alone(tmp_path / "a"):
        pass
    timer.join()
