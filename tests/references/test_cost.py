"""What a run would cost: measured on some of the job, or reckoned for a cluster; and `dtype: auto`, which a store keeps."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from multiref.cli import app
from multiref.errors import ArgumentError, StoreError
from multiref.models import ModelSpec
from multiref.models.precision import Precision
from multiref.references import References, Store, cost_estimate
from multiref.references.cost_estimate import DEVICES, EXTRAPOLATED, SHARE, START, Cluster, reckon
from multiref.references.engines import LocalEngine
from tests.references.doubles import Companion, pairs


class Slow(Companion):
    """By a clock of its own it takes 20 s to open, and then 4 ms a character."""

    def __init__(self):
        super().__init__()
        self.now, self.opened = 0.0, False

    def score(self, items):
        characters = sum(len(item.prompt) + sum(map(len, item.completions)) for item in items)
        self.now += 20 * (not self.opened) + 4e-3 * characters
        self.opened = True
        return super().score(items)


@pytest.mark.filterwarnings("ignore:.*did not fit")
def test_the_time_foretold_is_the_time_it_takes(tmp_path, monkeypatch):
    told_by, run_by = Slow(), Slow()
    monkeypatch.setattr("multiref.references.cost_estimate.time", SimpleNamespace(perf_counter=lambda: told_by.now))
    monkeypatch.setattr("multiref.references.collection.time", SimpleNamespace(perf_counter=lambda: told_by.now))
    told = References({"a": told_by}).estimate_cost(pairs(700), shard_size=100)
    scores = References({"a": run_by}).score(pairs(700), store=tmp_path, shard_size=100)
    assert told.seconds == pytest.approx(run_by.now, rel=0.02) and told.basis == "measured here"
    assert told.references[0].parts["start"] == pytest.approx(20, rel=0.05) and told_by.now < 0.6 * run_by.now
    assert told.references[0].tokens == pytest.approx(int(scores.lengths.sum()), rel=0.1)


class Two:
    """Two workers by one clock: 20 and 26 s to open, then 4 ms a character; each takes the next block when it is free."""

    def __init__(self):
        self.now = 0.0

    def count(self, blocks):
        return 2

    def audit(self, opener, blocks, everything):
        return LocalEngine().audit(opener, blocks, everything)

    def run(self, opener, blocks):
        reference, places, busy = opener(), iter(range(len(blocks))), []

        def start(worker, opening=0.0):
            if (place := next(places, None)) is not None:
                block = blocks[place]
                characters = sum(len(item.prompt) + sum(map(len, item.completions)) for item in block.items)
                busy.append((self.now + opening + 4e-3 * characters, worker, place, block))

        start(0, 20.0)
        start(1, 26.0)
        while busy:
            self.now, worker, place, block = min(busy, key=lambda each: each[:3])
            busy.remove((self.now, worker, place, block))
            start(worker)
            yield place, reference.score(block.items)


@pytest.mark.filterwarnings("ignore:.*did not fit")
@pytest.mark.parametrize("asked", [500, 600, 700])
def test_of_two_workers_neither_start_nor_what_is_under_way_counts_as_slowness(asked, tmp_path, monkeypatch):
    told_by, run_by = Two(), Two()
    for module in ("cost_estimate", "collection"):
        monkeypatch.setattr(f"multiref.references.{module}.time", SimpleNamespace(perf_counter=lambda: told_by.now))
    monkeypatch.setattr(Cluster, "engine", lambda _: told_by)
    told = References({"a": Companion()}).estimate_cost(pairs(asked), "2xlocal", shard_size=100)
    References({"a": Companion()}).score(pairs(asked), store=tmp_path, shard_size=100, engine=run_by)
    assert told.seconds == pytest.approx(run_by.now, rel=0.03)


def test_workers_take_the_next_block_when_they_are_free():
    sizes = np.array([3.0, 1.0, 1.0, 1.0, 2.0])
    assert [cost_estimate._makespan(sizes, workers) for workers in (1, 2, 9)] == [8.0, 5.0, 3.0]


def test_a_cluster_is_reckoned_as_by_hand():
    work, h100 = (10_000_000, 128, 2.5e9), DEVICES["H100"]
    parts = reckon(*work, 7e9, Cluster.parse("64xh100"))
    assert parts["score"] == pytest.approx(2 * 7e9 * 2.5e9 / (64 * SHARE * h100.flops)) and parts["start"] == 2 * START
    odd = reckon(10_000_000, 129, 2.5e9, 7e9, Cluster.parse("64xH100"))  # the last shard keeps all others waiting
    assert odd["score"] == pytest.approx(parts["score"] * 3 / 129 * 64)
    few = reckon(10_000, 64, 1.0, 7e9, Cluster.parse("64xH100"))
    assert few["score"] == 10_000 * cost_estimate.STORING, "the driver cannot hand out more"
    spread = reckon(*work, 70e9, Cluster.parse("64xH100"))  # three devices a worker, of which one works
    workers = 64 // math.ceil(1.2 * 140e9 / h100.memory)
    assert spread["score"] == pytest.approx(2 * 70e9 * 2.5e9 / (SHARE * h100.flops) * math.ceil(128 / workers) / 128)


@pytest.mark.parametrize(
    ("cluster", "said"),
    [("64xH900", r"expected COUNTxDEVICE.*known: local, A10, .*H100, H200"), ("0xH100", "expected COUNT"), ("2xL4", "need 7")],
    ids=["device", "count", "room"],
)
def test_what_cannot_be_reckoned_says_why(cluster, said):
    with pytest.raises(ArgumentError, match=said):
        reckon(1, 1, 1.0, 70e9, Cluster.parse(cluster))


def foretell(*arguments):
    done = CliRunner().invoke(app, ["score", *map(str, arguments), "--dry-run", "--json"])
    return json.loads(done.stdout)


def test_the_command_line_reckons_models_that_are_not_here(tmp_path, tiny_folder):
    data = tmp_path / "pairs.jsonl"
    rows = [{"prompt": "p" * 40, "chosen": f"{n:010}", "rejected": f"{n:030}"} for n in range(10)]
    data.write_text("\n".join(map(json.dumps, rows)))
    found = foretell(data, "--cluster", "64xH100", "--parameters", "16x7B", "--pairs", "10M")
    assert len(found["references"]) == 16 and found["basis"] == EXTRAPOLATED and "cluster" in found
    one = found["references"][3]
    assert one["name"] == "7B-4" and one["missing"] == 20_000_000 and one["tokens"] == 10_000_000 * 10
    tokens = 10_000_000 * 10 + 20_000_000 / 8 * 10  # the ten rows have one prompt, of which eight completions share a row
    expected = reckon(20_000_000, one["shards"], tokens, 7e9, Cluster.parse("64xH100"))
    assert one["parts"]["score"] == pytest.approx(expected["score"], rel=0.25)
    assert found["seconds"] == pytest.approx(found["planning"] + 16 * one["seconds"])
    here = foretell(data, "-r", f"a={tiny_folder}", "--store", tmp_path / "s", "--cluster", "2xL4", "--pairs", "1k")
    assert here["references"][0]["missing"] == 2000 and 0 < here["references"][0]["parameters"] < 1e6
    assert not (tmp_path / "s").exists()
    for wrong, said in (
        (["--cluster", "2xlocal", "--parameters", "7B"], "needs the models"),
        (["--cluster", "2xL4", "--parameters", "7 billion"], "such as 10M or 7B"),
        (["--parameters", "7B"], "Give --cluster"),
        (["--cluster", "2xL4"], "Expected --reference"),
        (["-r", f"a={tiny_folder}", "--store", tmp_path / "s", "--pairs", "1k"], "another cluster"),
    ):
        assert said in foretell(data, *wrong)["error"]


def test_rows_are_counted_as_they_were_given(tiny_folder):
    """A pair is one row, whether it comes as a `Pair`, as a mapping, or out of a generator."""
    rows = [{"prompt": f"p{n}", "chosen": "a", "rejected": "b"} for n in range(10)]
    for given in (pairs(10), rows, (row for row in rows)):
        found = cost_estimate.imagine_costs(given, ["7B"], 7e9, "64xH100", shard_size=None, pairs=1000)
        assert found.references[0].wanted == 2000
    told = References({"a": str(tiny_folder)}).estimate_cost((row for row in rows), "2xL4", pairs=1000)
    assert told.references[0].missing == 2000


def test_auto_is_measured_once_for_a_store_and_kept_there(tmp_path, tiny_folder, monkeypatch):
    asked = []

    def chosen(spec):
        asked.append(spec)
        return Precision("bfloat16" if len(asked) == 1 else "float32", 1.5, 0.1, 100)

    monkeypatch.setattr("multiref.references.resolve.choose_precision", chosen)
    store = Store(tmp_path / "s")
    references = {"a": ModelSpec(str(tiny_folder), dtype="auto")}
    with pytest.warns(match="bfloat16 is 1.50 times as fast"):
        References(references).score(pairs(4), store=store)
    References({"again": references["a"]}).score(pairs(6), store=store)
    kept = [note["identity"]["dtype"] for note in store.references().values()]
    assert kept == ["bfloat16"] and len(asked) == 1, "whoever goes on reads what was chosen"
    (path,) = (store.folder / "precisions").glob("*.json")
    path.write_text(path.read_text().replace('"bfloat16"', '"float32"'))
    assert [damage.path for damage in store.verify()] == [path]
    with pytest.raises(StoreError, match="has changed since it was written"):
        References(references).score(pairs(6), store=store)
