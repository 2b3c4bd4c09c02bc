"""Killed at any moment, out of disk, or two at once: the store ends as if nothing had happened."""

import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from multiref.references import References, Store
from tests.references.doubles import Companion, pairs

pytestmark = pytest.mark.filterwarnings("ignore:.*did not fit")
COUNT, SHARD, PAUSE = 150, 20, 0.01  # 300 completions in 15 shards per reference, 10 ms of work each
ROOT = Path(__file__).parents[2]


def start(store, log, *, pause=PAUSE, limit=None):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.references.run_job", str(store), str(log), str(SHARD), str(pause), str(COUNT)],
        cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=limit,
    )  # fmt: skip


def finish(store):
    """The same job in this process: its scores, and how many completions it still had to score."""
    references = {name: Companion(name) for name in ("a", "b")}
    scores = References(references).score(pairs(COUNT), store=store, shard_size=SHARD)
    return scores, sum(reference.scored() for reference in references.values())


def scored_by(log):
    return len(log.read_text().splitlines()) if log.exists() else 0


def kill_after(completions, delay, folder):
    """Start the job, and end it with SIGKILL `delay` seconds after it scored so many. Returns how many it had scored by then."""
    log = folder / "log"
    process = start(folder / "store", log)
    while scored_by(log) < completions and process.poll() is None:
        time.sleep(0.0005)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return scored_by(log)


def check_kill(seed, folder):
    uninterrupted, total = finish(folder / "whole")
    assert total == 2 * 2 * COUNT
    dice = random.Random(seed)
    before = kill_after(dice.randrange(1, 4 * COUNT), dice.uniform(0, 2 * PAUSE), folder)
    assert Store(folder / "store").verify() == []
    scores, after = finish(folder / "store")
    assert torch.equal(scores.logps, uninterrupted.logps) and torch.equal(scores.lengths, uninterrupted.lengths)
    assert 0 <= before + after - total <= SHARD + 8, "more than the open shard was scored again"
    return before


@pytest.mark.parametrize("seed", range(3))
def test_killed_and_run_again_gives_the_same_bits(seed, tmp_path):
    check_kill(seed, tmp_path)


@pytest.mark.slow
def test_killed_at_twenty_moments(tmp_path):
    moments = [check_kill(seed, tmp_path / str(seed)) for seed in range(100, 120)]
    print(
        f"SIGKILL after {sorted(moments)} of {4 * COUNT} completions: same bits 20 of 20, at most the open shard scored again"
    )
    assert len(set(moments)) > 5, "the kills were not spread over the job"


def test_two_processes_at_once(tmp_path):
    """Both finish, the store is sound, and reading it is unambiguous."""
    processes = [start(tmp_path / "store", tmp_path / f"log{n}", pause=0.002) for n in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert Store(tmp_path / "store").verify() == []
    scores, after = finish(tmp_path / "store")
    whole, _ = finish(tmp_path / "whole")
    assert after == 0 and torch.equal(scores.logps, whole.logps)
    assert sum(entry["rows"] for entry in Store(tmp_path / "store").manifest().values()) == 4 * COUNT


def test_a_real_write_that_fails_halfway_leaves_a_sound_store(tmp_path):
    """The system itself refuses to let a file grow beyond 1,500 bytes: the shard's write fails after it began."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))

    process = start(tmp_path / "store", "/dev/null", limit=limit)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and "StoreError: Cannot write" in errors and "exceed the size" in errors
    assert Store(tmp_path / "store").verify() == [] and not list((tmp_path / "store").rglob("*.part"))
    assert finish(tmp_path / "store")[1] == 4 * COUNT
