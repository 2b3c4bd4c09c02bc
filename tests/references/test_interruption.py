"""Killed at any moment, out of disk, or two at once: the store ends as if nothing had happened."""

import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from multiref.errors import StoreError
from multiref.references import References, Store
from tests import forked
from tests.references.doubles import Companion, pairs
from tests.references.run_job import main as run_job

pytestmark = pytest.mark.filterwarnings("ignore:.*did not fit")
COUNT, SHARD, PAUSE = 150, 20, 0.01  # 300 completions in 15 shards per reference, 10 ms of work each
ROOT = Path(__file__).parents[2]


def start(store, log, *, pause=PAUSE, model=()):
    return forked.start(run_job, store, log, SHARD, pause, COUNT, *model)


def finish(store):
    """The same job in this process: its scores, and how many completions it still had to score."""
    references = {name: Companion(name) for name in ("a", "b")}
    scores = References(references).score(pairs(COUNT), store=store, shard_size=SHARD)
    return scores, sum(reference.scored() for reference in references.values())


def ends(process):
    """Whether it ends well."""
    process.join(300)
    return process.exitcode == 0


def scored_by(log):
    return len(log.read_text().splitlines()) if log.exists() else 0


def kill_after(completions, delay, folder):
    """Start the job, and end it with SIGKILL `delay` seconds after it scored so many. Returns how many it had scored by
    then."""
    log = folder / "log"
    with forked.ended(start(folder / "store", log)) as process:
        while scored_by(log) < completions and process.is_alive():
            time.sleep(0.0005)
        time.sleep(delay)
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


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_killed_and_run_again_gives_the_same_bits(seed, tmp_path):
    check_kill(seed, tmp_path)


@pytest.mark.slow
def test_killed_at_twenty_moments(tmp_path):
    moments = [check_kill(seed, tmp_path / str(seed)) for seed in range(100, 120)]
    print(
        f"SIGKILL after {sorted(moments)} of {4 * COUNT} completions: same bits 20 of 20, at most the open shard scored again"
    )
    assert len(set(moments)) > 5, "the kills were not spread over the job"


@pytest.mark.slow
def test_a_real_model_killed_at_five_moments(tmp_path, tiny_folder):
    """A (tiny) Llama in float32, one thread: the process is ended once so many shards are there, and another one finishes."""
    whole = tmp_path / "whole"
    assert ends(start(whole, "-", model=[tiny_folder]))
    expected = {path.name for path in whole.rglob("*.parquet")}
    for moment in (1, 4, 7, 10, 13):
        store = tmp_path / str(moment)
        with forked.ended(start(store, "-", model=[tiny_folder])) as process:
            while len(list(store.rglob("*.parquet"))) < moment and process.is_alive():
                time.sleep(0.001)
        there = {path.name for path in store.rglob("*.parquet")}
        assert there < expected, "what was stored before the kill is what an uninterrupted run stores"
        assert ends(start(store, "-", model=[tiny_folder]))
        assert {path.name for path in store.rglob("*.parquet")} == expected  # names are checksums: the same bits


def test_two_processes_at_once(tmp_path):
    """Both finish, nothing is scored twice, the store is sound, and reading it is unambiguous."""
    processes = [start(tmp_path / "store", tmp_path / f"log{n}", pause=0.002) for n in range(2)]
    assert all(map(ends, processes))
    assert sum(scored_by(tmp_path / f"log{n}") for n in range(2)) == 4 * COUNT
    assert Store(tmp_path / "store").verify() == []
    scores, after = finish(tmp_path / "store")
    whole, _ = finish(tmp_path / "whole")
    assert after == 0 and torch.equal(scores.logps, whole.logps)
    assert sum(entry["rows"] for entry in Store(tmp_path / "store").manifest().values()) == 4 * COUNT


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs to drop the right to write, which takes root")
@pytest.mark.slow
def test_a_folder_that_may_only_be_read(tmp_path):
    """In a process without root's rights: a complete store is read, an incomplete one is one clear error."""
    _, total = finish(tmp_path / "store")
    code = (
        "import os, tempfile, warnings; warnings.simplefilter('ignore')\n"
        "from multiref.references import References; from tests.references.doubles import Companion, pairs\n"
        f"refs, store = References({{n: Companion(n) for n in 'ab'}}), {str(tmp_path / 'store')!r}\n"
        "refs.score(pairs(1), store=tempfile.mkdtemp()); os.setuid(65534)\n"  # everything is imported before the rights go
        f"print(len(refs.score(pairs({COUNT}), store=store)))\n"
        f"refs.score(pairs({COUNT + 1}), store=store)"
    )
    for folder in [tmp_path, *tmp_path.parents]:
        if folder.name.startswith(("pytest-", "popen-", tmp_path.name)):  # pytest's own, which only its user may enter
            folder.chmod(0o755)
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.stdout.strip() == str(total // 2), result.stderr
    assert (
        result.stderr.strip().splitlines()[-1].startswith("multiref.errors.StoreError: Cannot write")
        and "Permission denied" in result.stderr
    )
    assert Store(tmp_path / "store").verify() == []


def test_a_real_write_that_fails_halfway_leaves_a_sound_store(tmp_path):
    """The system itself refuses to let a file grow beyond 1,500 bytes: the shard's write fails after it began."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, before[1]))
    try:
        with pytest.raises(StoreError, match=r"Cannot write.*File too large"):
            finish(tmp_path / "store")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert Store(tmp_path / "store").verify() == [] and not list((tmp_path / "store").rglob("*.part"))
    assert finish(tmp_path / "store")[1] == 4 * COUNT
