"""Scores are joined partition by partition on disk: the same numbers as a dictionary would give, and nothing left behind."""

import errno
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from multiref.data import Pair
from multiref.errors import MultirefWarning, OutputError, StoreError
from multiref.references import References, Store, mapped, read_scores, stored
from multiref.references.keys import content_keys, partition_starts
from multiref.references.store import Rows
from tests.references.doubles import Companion, pairs

NAMES = ["a", "b", "c"]


@pytest.fixture
def on_disk(monkeypatch):
    """As if every store were too large for memory."""
    monkeypatch.setattr(stored, "PARTITION", 300)
    monkeypatch.setattr(mapped, "HELD", 0)


def filled(folder, completions=400):
    """A store in which a third is missing under one reference or another, and some completions lie in two shards with other
    numbers: those of the shard whose name sorts first count."""
    store, random = Store(folder), np.random.default_rng(3)
    keys = content_keys(["p"] * completions, [str(n) for n in range(completions)])
    for number, name in enumerate(NAMES):
        address = store.register({"number": number}, name=name, location="here")
        held = keys[random.permutation(completions)[: completions - 40]]
        for part in (held[:150], held[150:], held[100:200]):
            numbers = (
                -random.gamma(5, 2, len(part)),
                random.integers(0, 99, len(part), np.int32),
                random.random(len(part)) < 0.1,
            )
            store.append(address, Rows(part, *numbers, random.integers(0, 2**64, len(part), np.uint64)))
    return store


def oracle(store):
    """Key → [K] rows of (logp, length, truncated, digest), of the keys that all references have."""
    tables = []
    for name in NAMES:
        table = {}
        for part in store.parts(store.named(name)):
            for key, *values in zip(part.keys.tolist(), part.logps, part.lengths, part.truncated, part.digests):
                table.setdefault(key, tuple(values))
        tables.append(table)
    return {key: [table[key] for table in tables] for key in sorted(set.intersection(*map(set, tables)))}


def test_what_is_joined_on_disk_is_what_a_dictionary_gives(on_disk, tmp_path):
    store = filled(tmp_path / "store")
    files, expected = sorted(tmp_path.rglob("*")), oracle(store)
    assert 200 < len(expected) < 360 and len(stored.partition_starts(1 + 15_000 // stored.PARTITION)) > 40
    scores = read_scores(tmp_path / "store")
    assert scores.keys.tolist() == list(expected) and sorted(tmp_path.rglob("*")) == files
    found = zip(*(np.asarray(getattr(scores, what)).tolist() for what in ("logps", "lengths", "truncated", "digests")))
    for k, columns in enumerate(found):
        assert list(zip(*columns)) == [each[k] for each in expected.values()]
    some = torch.tensor([[5, 3], [0, 5]])
    assert torch.equal(scores.at("logps", some), scores.logps[:, some])
    copy = pickle.loads(pickle.dumps(scores))  # as a process is sent it
    assert copy.mapped[0] is not scores.mapped[0] and torch.equal(copy.logps, scores.logps)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_was_read_of_the_disk_is_no_memory_of_this_process(on_disk, tmp_path):
    def resident():
        lines = Path("/proc/self/smaps").read_text().split("\n")
        starts = [n for n, line in enumerate(lines) if str(tmp_path) in line]
        return sum(int(lines[next(m for m in range(n, n + 9) if lines[m].startswith("Rss:"))].split()[1]) for n in starts)

    with pytest.warns(MultirefWarning, match="19 of 6,000 texts did not fit"):
        scores = References({"a": Companion()}).score(pairs(3000), store=tmp_path)
    assert len(scores.mapped) == 5 and resident() == 0  # the keys were read as it was made
    assert scores.of_pairs(pairs(3000))[0].shape == (1, 3000) and int(scores.cut.sum()) == 19 and resident() == 0
    assert float(scores.logps.sum()) < 0 and resident() > 40


def test_part_n_of_one_reference_joins_part_n_of_another():
    """A boundary key is in the partition that it begins; however many there are, the parts are in the order of the keys."""
    keys = np.array([0, 2**15 - 1, 2**15, 2**16 - 1], ">u2").view("S2")
    assert np.searchsorted(partition_starts(2)[1:], keys, side="right").tolist() == [0, 0, 1, 1]
    assert [len(np.unique(partition_starts(n))) for n in (1, 3, 64, 2**16)] == [1, 3, 64, 2**16]


def test_no_room_is_one_message_and_nothing_half_written(on_disk, tmp_path, monkeypatch):
    filled(tmp_path / "store")
    files = sorted(tmp_path.rglob("*"))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutputError, match=r"cannot hold scores on disk in .*store: .*No space left on device. Free some space"):
        read_scores(tmp_path / "store")
    assert sorted(tmp_path.rglob("*")) == files


def test_scores_that_another_process_takes_away_meanwhile_are_named(tmp_path):
    class Taken(Companion):
        def release(self):
            for path in (tmp_path / "shards").rglob("*.parquet"):
                path.unlink()

    with pytest.raises(StoreError, match=r"8 of 8 completions lost a score in .*another process"):
        References({"a": Taken()}).score([Pair(f"p{n}", "x", "y") for n in range(4)], store=tmp_path)
