"""The store: nothing is scored twice, nothing is lost, and what is damaged is named."""

import errno
import json
import os
import shutil
import time
import warnings

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from multiref.errors import ArgumentError, MultirefWarning, OutputError, StoreError
from multiref.references import References, Store
from multiref.references.store import Rows, atomic
from multiref.references.store.prune import prunable, remove
from tests.references.doubles import Companion, pairs

pytestmark = pytest.mark.filterwarnings("ignore:.*did not fit")


def rows_of(count, seed=0):
    random = np.random.default_rng(seed)
    keys = np.frombuffer(random.bytes(16 * count), "V16")
    return Rows(
        keys, -random.exponential(size=count), random.integers(0, 99, count).astype(np.int32), random.random(count) < 0.5
    )


def score(folder, reference=None, *, data=None, shard_size=20):
    """Scores, and the double that scored (a fresh one, so that what it did was done in this call)."""
    reference = reference or Companion()
    return References({"a": reference}).score(data or pairs(60), store=folder, shard_size=shard_size), reference


def snapshot(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same_bits(one, other):
    return (
        torch.equal(one.logps, other.logps) and bool((one.keys == other.keys).all()) and torch.equal(one.lengths, other.lengths)
    )


# -- one shard and many ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_what_is_appended_is_read(tmp_path, count):
    store, rows = Store(tmp_path), rows_of(count)
    rows.logps[:1] = -np.inf  # a completion that a reference excludes is a score too
    path = store.append("ab", rows)
    read, damage = store.read("ab")
    assert not damage
    for what in ("keys", "logps", "lengths", "truncated"):
        assert np.array_equal(getattr(read, what), getattr(rows, what)), what
    assert store.append("ab", rows) == path and len(store.shards("ab")) == 1


def test_shards_are_plain_parquet(tmp_path):
    path = Store(tmp_path).append("ab", rows_of(3))
    assert pq.read_table(path).column_names == ["key", "logp", "length", "truncated", "digest"]


def test_shards_of_the_format_before_are_read(tmp_path):
    """They have no digests, which are then unknown, and no layout."""
    import hashlib
    import io

    new = pq.read_table(Store(tmp_path).append("ab", rows_of(3)))
    old = new.drop_columns("digest").replace_schema_metadata({"multiref.format": "1", "multiref.reference": "cd"})
    content = io.BytesIO()
    pq.write_table(old, content, compression="none", use_dictionary=False)  # as it wrote them
    path = tmp_path / "shards" / "cd" / f"{hashlib.sha256(content.getvalue()).hexdigest()}.parquet"
    path.parent.mkdir()
    path.write_bytes(content.getvalue())
    read, damage = Store(tmp_path).read("cd")
    assert not damage and np.array_equal(read.logps, rows_of(3).logps) and not read.digests.any()


def test_a_score_that_is_not_a_number_is_not_stored(tmp_path):
    rows = rows_of(3)
    rows.logps[1] = np.nan
    with pytest.raises(StoreError, match="1 of 3 scores"):
        Store(tmp_path).append("ab", rows)
    assert not list(tmp_path.rglob("*.parquet"))


def test_every_flipped_byte_and_every_truncation_is_noticed(tmp_path):
    """Exhaustive over a small shard: each byte flipped in one bit, and each shorter length."""
    store = Store(tmp_path)
    path = store.append("ab", rows_of(3))
    content = path.read_bytes()
    for at in range(0, len(content), 7):
        for broken in (content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :], content[:at]):
            path.write_bytes(broken)
            rows, (damage,) = store.read("ab")
            assert len(rows) == 0 and damage.path == path and path.name in damage.what
    path.write_bytes(content)
    assert len(store.read("ab")[0]) == 3


# -- nothing twice -----------------------------------------------------------------------------------------------------


def test_what_is_stored_is_not_scored_again_in_any_order_or_under_any_name(tmp_path):
    first, reference = score(tmp_path)
    assert reference.scored() == 120
    again, reference = score(tmp_path, data=pairs(60)[::-1], shard_size=7)
    assert reference.scored() == 0 and same_bits(first, again)
    renamed = Companion()
    other = References({"another name": renamed}).score(pairs(60), store=tmp_path)
    assert renamed.scored() == 0 and torch.equal(first.logps, other.logps)


def test_a_second_data_set_pays_only_for_what_is_new(tmp_path):
    score(tmp_path, data=pairs(60))
    both, reference = score(tmp_path, data=pairs(60, start=30))
    assert reference.scored() == 60
    fresh, _ = score(tmp_path / "other", data=pairs(60, start=30))
    assert torch.allclose(both.logps, fresh.logps, atol=1e-8)


def test_the_store_moves_with_its_folder(tmp_path):
    first, _ = score(tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    again, reference = score(tmp_path / "there")
    assert reference.scored() == 0 and same_bits(first, again)


def test_the_identity_decides_and_only_it(tmp_path):
    assert Store.address({"a": 1, "b": [2]}) == Store.address({"b": (2,), "a": 1})
    assert Store.address({"a": 1}) != Store.address({"a": 2}) != Store.address({"a": "2"})
    with pytest.raises(StoreError, match="JSON"):
        Store.address({"weights": torch.zeros(1)})


def test_a_model_that_changed_in_its_place_is_scored_anew_and_said_so(tmp_path, monkeypatch):
    """The path stays, the identity differs: new scores, a notice that names what changed, the old scores kept."""
    from multiref.references.resolve import Opener

    at = {"./model": Companion("old")}
    monkeypatch.setattr(Opener, "_open", lambda opener: at[opener.what])
    old = References({"a": "./model"}).score(pairs(5), store=tmp_path)
    at["./model"] = Companion("new")
    with pytest.warns(MultirefWarning, match=r"What is at \./model \('a'\) is not what was scored.*: name changed"):
        new = References({"a": "./model"}).score(pairs(5), store=tmp_path)
    assert not torch.equal(old.logps, new.logps)
    at["./model"] = Companion("old")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # known from here: nothing new to say
        back = References({"a": "./model"}).score(pairs(5), store=tmp_path)
    assert at["./model"].scored() == 0 and same_bits(old, back)


def test_new_weights_in_an_old_folder_are_noticed(tmp_path, tiny_folder):
    """A real model folder, its safetensors overwritten by another seed: not one old score is taken for a new one."""
    from tests.conftest import make_llama

    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    old = References({"a": str(folder)}).score(pairs(3), store=tmp_path / "scores")
    shutil.copytree(tiny_folder, tmp_path / "moved")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same_bits(old, References({"b": str(tmp_path / "moved")}).score(pairs(3), store=tmp_path / "scores"))
    width = json.loads((folder / "config.json").read_text())["vocab_size"]
    make_llama(width, seed=5).save_pretrained(folder)
    with pytest.warns(MultirefWarning, match=r"is not what was scored from there before.*weights changed"):
        new = References({"a": str(folder)}).score(pairs(3), store=tmp_path / "scores")
    assert (new.logps != old.logps).all()


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", ["flip", "truncate", "delete"])
def test_only_the_damaged_shard_is_scored_again_to_the_same_bits(tmp_path, harm):
    first, _ = score(tmp_path)
    before = snapshot(tmp_path)
    store = Store(tmp_path)
    victim = store.shards(Store.address(Companion().identity()))[2]
    size = pq.read_metadata(victim).num_rows
    content = victim.read_bytes()
    if harm == "delete":
        victim.unlink()
    else:
        victim.write_bytes(content[:-9] if harm == "truncate" else content[:50] + bytes([content[50] ^ 4]) + content[51:])
    (damage,) = store.verify()
    assert victim.name in str(damage)
    reference = Companion()
    if harm == "delete":
        again, _ = score(tmp_path, reference)
    else:
        with pytest.warns(MultirefWarning, match=victim.name):
            again, _ = score(tmp_path, reference)
    assert reference.scored() == size and same_bits(first, again)
    assert {path: text for path, text in snapshot(tmp_path).items() if path.parts[0] != "damaged"} == before
    assert store.verify() == []


def test_the_manifest_is_rebuilt_from_the_shards(tmp_path):
    score(tmp_path)
    store = Store(tmp_path)
    whole = (tmp_path / "manifest.json").read_bytes()
    for broken in (None, b"", b"{not json", b'{"shards": {"ab/gone.parquet": {"rows": 1, "bytes": 1}}}'):
        (tmp_path / "manifest.json").unlink() if broken is None else (tmp_path / "manifest.json").write_bytes(broken)
        assert sum(entry["rows"] for entry in store.manifest().values()) == 120
        assert (tmp_path / "manifest.json").read_bytes() == whole


def test_prune_removes_what_is_named_and_nothing_that_is_sound(tmp_path):
    score(tmp_path)
    score(tmp_path, Companion("other"))
    store = Store(tmp_path)
    before = snapshot(tmp_path)
    assert prunable(store) == {}
    old, young = (tmp_path / "shards" / f".{age}{atomic.TEMPORARY}" for age in ("old", "young"))
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 3600,) * 2)
    assert list(prunable(store)) == [old]
    remove(store, [old])
    young.unlink()
    assert snapshot(tmp_path) == before
    address = Store.address(Companion("other").identity())
    with pytest.raises(StoreError, match=r"2 references are called 'a'.*beginning of its address"):
        prunable(store, references=["a"])
    going = list(prunable(store, references=[address[:8]]))
    assert [path.parent.name for path in going].index("references") == len(going) - 1, "who is killed can ask by name again"
    remove(store, going)
    _, reference = score(tmp_path)
    assert reference.scored() == 0 and list(store.references()) == [Store.address(Companion().identity())]


# -- a world that does not help ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "No space left on device. Free some space"),
        (errno.EROFS, "Read-only file system"),
        (errno.EACCES, "Permission denied"),
        (errno.EIO, "Input/output error.*What was stored before is intact"),
    ],
)
@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_failed_write_is_one_clear_error_and_the_store_is_intact(tmp_path, monkeypatch, number, words, moment):
    """The first shard is written, the second fails at either moment; what is there is sound and the next run needs only the
    rest."""
    whole, _ = score(tmp_path / "whole")
    calls = []
    real = getattr(os, moment)

    def failing(*args):
        is_shard = (
            str(args[-1]).endswith(".parquet")
            if moment == "replace"
            else os.path.realpath(f"/proc/self/fd/{args[0]}").endswith(atomic.TEMPORARY)
        )
        calls.append(is_shard)
        if is_shard and sum(calls) == 3:
            raise OSError(number, os.strerror(number))
        return real(*args)

    monkeypatch.setattr(os, moment, failing)
    with pytest.raises(StoreError, match=words):
        score(tmp_path / "store")
    monkeypatch.undo()
    store = Store(tmp_path / "store")
    assert store.verify() == [] and not list(tmp_path.rglob(f"*{atomic.TEMPORARY}"))
    kept = len(store.read(Store.address(Companion().identity()))[0])
    again, reference = score(tmp_path / "store")
    assert 0 < kept < 120 and reference.scored() == 120 - kept and same_bits(whole, again)


def test_a_store_in_a_place_that_cannot_be_written_fails_before_anything_is_scored(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    reference = Companion()
    with pytest.raises(StoreError, match=r"Cannot write .*: (Not a directory|File exists)\. "):
        score(tmp_path / "file" / "store", reference)
    assert reference.scored() == 0


def test_a_complete_store_can_be_read_where_nothing_can_be_written(tmp_path, monkeypatch):
    first, _ = score(tmp_path)

    def refuse(path, content):
        raise AssertionError(f"wrote {path}")

    monkeypatch.setattr(atomic, "write", refuse)
    again, reference = score(tmp_path)
    assert reference.scored() == 0 and same_bits(first, again)


def test_a_store_that_can_only_be_read_serves_another_name_too(tmp_path, monkeypatch):
    first, _ = score(tmp_path)

    def full(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "replace", full)
    other = References({"another name": Companion()}).score(pairs(60), store=tmp_path)
    assert torch.equal(other.logps, first.logps)


def test_what_is_no_store_is_not_taken_for_one(tmp_path):
    with pytest.raises(StoreError, match="does not exist"):
        Store(tmp_path / "nowhere", create=False)
    with pytest.raises(StoreError, match="no store of scores"):
        Store(tmp_path, create=False)


def test_a_shard_of_another_reference_or_format_is_refused(tmp_path):
    store = Store(tmp_path)
    path = store.append("ab", rows_of(3))
    (tmp_path / "shards" / "cd").mkdir()
    shutil.copy(path, tmp_path / "shards" / "cd" / path.name)
    assert "another reference" in str(store.read("cd")[1][0])


def test_the_note_of_a_reference_says_who_it_is(tmp_path):
    score(tmp_path)
    address = Store.address(Companion().identity())
    note = json.loads((tmp_path / "references" / f"{address}.json").read_text())
    assert note["identity"] == Companion().identity() and note["seen"][0]["name"] == "a"
    (tmp_path / "references" / f"{address}.json").write_text(json.dumps({"identity": {"kind": "forged"}, "seen": []}))
    assert "was changed" in str(Store(tmp_path).verify()[0])


def test_an_export_is_of_the_scores_alone(tmp_path):
    """However they are cut into shards, and wherever they were scored: the same bytes, and no path of the machine."""
    from multiref.references.store.export import export

    files, rows = [], rows_of(60)
    for size in (7, 50):
        store, here = Store(tmp_path / f"s{size}"), str(tmp_path / f"model-{size}")
        address = store.register(Companion().identity(), name="a", location=here)
        for start in range(0, 60, size):
            store.append(address, rows.take(np.arange(start, min(60, start + size + 3))))  # some of them twice
        assert store.references()[address]["seen"] == [{"name": "a", "location": here}]
        assert export(store, tmp_path / f"{size}.parquet") == 60
        files.append((tmp_path / f"{size}.parquet").read_bytes())
    assert files[0] == files[1] and str(tmp_path).encode() not in files[0]


def test_an_export_in_parts_joins_part_by_part(tmp_path):
    """Every row is in one part, told by its key alone, so that part n of two references has the same completions."""
    import pyarrow.dataset as ds

    from multiref.references.store.export import export, export_partitions

    store, rows = Store(tmp_path / "s"), rows_of(500)
    for name in ("a", "../b"):
        address = store.register(Companion(name).identity(), name=name, location="here")
        store.append(address, rows.take(np.arange(300)))
        store.append(address, rows.take(np.arange(200, 500)))  # some of them twice
    assert export_partitions(store, f"file://{tmp_path}/parts", partitions=7) == 1000
    folders = {path.name: sorted(path.glob("*")) for path in (tmp_path / "parts").iterdir()}
    assert folders.keys() == {"a", "%2E.%2Fb"} and all(len(files) == 7 for files in folders.values())
    keys = {name: [pq.read_table(file)["key"].to_pylist() for file in files] for name, files in folders.items()}
    assert keys["a"] == keys["%2E.%2Fb"] and all(len(part) > 30 for part in keys["a"])
    for number, part in enumerate(keys["a"]):
        assert all(number * 65536 // 7 <= int(key[:4], 16) < (number + 1) * 65536 // 7 for key in part)
    export(store, tmp_path / "whole.parquet", references=["a"])
    parts = ds.dataset(folders["a"]).to_table()
    assert parts.equals(pq.read_table(tmp_path / "whole.parquet"))
    with pytest.raises(ArgumentError, match="expected 1 to 65,536"):
        export_partitions(store, tmp_path / "none", partitions=0)
    with pytest.raises(OutputError, match="Cannot write nosuch://x"):
        export_partitions(store, "nosuch://x", partitions=2)
