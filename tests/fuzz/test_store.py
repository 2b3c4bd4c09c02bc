"""A store that something else wrote into: what is read from it is what was scored, or one error or notice names the file.

Flipped and lost bytes never change a number. Crafted shards (with the right checksum), records of another shape, pipes, links
and folders in place of files end in one of our errors, or what they held is scored again.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import time
import warnings
from pathlib import Path
from random import Random
from tempfile import mkdtemp

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from multiref._sealed import seal
from multiref.cli import app
from multiref.errors import MultirefError, MultirefWarning, StoreError
from multiref.references import References, Store, read_scores
from multiref.references.audits import _read
from multiref.references.store.shards import FORMAT, SCHEMA
from tests.fuzz.mutations import change, damage, dump
from tests.references.doubles import Companion, pairs

TRIES, TOTAL = int(os.environ.get("FUZZ", "100")), float(os.environ.get("FUZZ_SECONDS", "3"))
ADDRESS = Store.address(Companion("a").identity())
SPAN = {"longest": 9, "widest": 2, "company": 9, "shortest": 3}
AUDIT = {"audit": {"layout": "batched", "head": True, "vocabulary": 9, "stateful": False, "span": SPAN, "rows": [1, 2],
                   "errors": {"shared": None}, "judged": "float32", "rounding": None, "unmeasured": "", "seconds": 0.1},
         "asked": SPAN, "keys": ["ab"], "refuted": ["shared"], "versions": {"torch": "1"}}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store, and the scores in it."""
    folder = tmp_path_factory.mktemp("whole")
    scores = ask(folder / "store")
    Store(folder / "store").keep("audits", ADDRESS, AUDIT)
    Store(folder / "store").manifest()
    return folder / "store", scores


def ask(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MultirefWarning)
        return References({name: Companion(name) for name in ("a", "b")}).score(pairs(9), store=folder, shard_size=6)


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(folder, random):
    path = random.choice(files(folder))
    path.write_bytes(damage(path.read_bytes(), random))


def replace(folder, random):
    """Something else in place of a file, or of a folder."""
    path = random.choice(sorted(folder.rglob("*")))
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    match random.choice(["nothing", "pipe", "folder", "dangling", "loop", "zero", "empty"]):
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "dangling":
            path.symlink_to("nowhere")
        case "loop":
            path.symlink_to(path)
        case "zero":
            path.symlink_to("/dev/zero")
        case "empty":
            path.write_bytes(b"")


def rewrite(folder, random):
    """A record of another shape, with a sum that agrees where it had one."""
    path = random.choice([path for path in files(folder) if path.suffix == ".json"])
    kept = json.loads(path.read_bytes())
    sealed = kept.pop("sum", None)
    changed = change(kept, random)
    if sealed and isinstance(changed, dict):
        with contextlib.suppress(TypeError, ValueError):
            changed = seal(changed)
    path.write_bytes(dump(changed))


COLUMNS = {
    "key": [b"k" * 16, b"l" * 16], "logp": [-1.0, -2.0], "length": [3, 4], "truncated": [False, True], "digest": [1, 2],
}  # fmt: skip
ODD = [None, float("nan"), 1.5, float("inf"), -1, 0, 2**31 - 1, "x", b"", b"k" * 16, [1], True]


def craft(folder, random):
    """A shard that names itself rightly: columns of other types, lengths, values and names; other metadata."""
    columns = {name: list(values) for name, values in COLUMNS.items()}
    name = random.choice(list(columns))
    fields = dict(zip(SCHEMA.names, SCHEMA))
    said = {"multiref.format": FORMAT, "multiref.reference": ADDRESS, "multiref.layout": ""}
    options = {"compression": "none", "use_dictionary": False}
    match random.choice(["value", "value", "value", "type", "drop", "more", "twice", "said", "packed", "empty"]):
        case "value":
            columns[name][0] = random.choice(ODD)
        case "type":
            kind = random.choice(
                [pa.string(), pa.binary(), pa.float32(), pa.int64(), pa.list_(pa.int8()), pa.binary(15), pa.null()]
            )
            fields[name] = pa.field(name, kind)
            columns[name] = [None, None]
        case "drop":
            del columns[name], fields[name]
        case "more":
            columns["more"], fields["more"] = [1, 2], pa.field("more", pa.int8())
        case "twice":
            columns["key"] = [b"k" * 16] * 2
        case "said":
            said[random.choice(list(said))] = random.choice(["", "9", b"\xff\xfe", "a" * 9999, "shared"])
        case "packed":
            options = {"compression": "zstd"}
            columns = {key: values * 10**4 for key, values in columns.items()}
        case "empty":
            columns = {key: [] for key in columns}
    try:
        arrays = [pa.array(values, fields[key].type) for key, values in columns.items()]
        kept = [
            pa.field(key, fields[key].type, any(v is None for v in columns[key]) or fields[key].nullable) for key in columns
        ]
        table = pa.Table.from_arrays(arrays, schema=pa.schema(kept, metadata=said))
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return  # it cannot even be written
    stream = io.BytesIO()
    pq.write_table(table, stream, **options)
    put(folder, damage(stream.getvalue(), random) if random.random() < 0.3 else stream.getvalue())


def put(folder, content):
    (folder / "shards" / ADDRESS / f"{hashlib.sha256(content).hexdigest()}.parquet").write_bytes(content)


HARM = {"flip": flip, "replace": replace, "rewrite": rewrite, "craft": craft}


@pytest.mark.parametrize("harm", HARM)
def test_a_store_that_was_written_into(harm, whole):
    store, scores = whole
    until = time.monotonic() + TOTAL / 2

    @settings(
        max_examples=TRIES // 4, deadline=None, database=None, derandomize=TRIES == 100, suppress_health_check=list(HealthCheck)
    )
    @given(st.integers(0, 2**63))
    def tries(seed):
        if time.monotonic() > until:
            return
        folder = Path(mkdtemp())
        try:
            shutil.copytree(store, folder / "s")
            HARM[harm](folder / "s", Random(seed))
            look_at(folder, scores)
            store_verb("prune", folder / "s", "--yes")
        finally:
            shutil.rmtree(folder)

    tries()


def store_verb(verb, folder, *arguments):
    found = CliRunner().invoke(app, ["store", verb, str(folder), *arguments])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception


def look_at(folder, scores):
    """Through every door: the scores that are read are those that were scored."""
    for verb in (["ls"], ["verify"], ["export", str(folder / "o.parquet")], ["prune"]):
        store_verb(verb[0], folder / "s", *verb[1:])
    for read in (
        lambda: ask(folder / "s"),
        lambda: read_scores(folder / "s", ["a"]),
        lambda: _read(Store(folder / "s").record("audits", ADDRESS)),
    ):
        try:
            again = read()
        except MultirefError as error:
            assert str(error)
            continue
        if not isinstance(again, tuple):
            at = again.locate(scores.keys)
            assert not again.logps.isnan().any() and (again.logps < 1e-2).all()
            same = again.logps[0, torch.from_numpy(at[at >= 0])]
            assert torch.equal(same, scores.logps[0, torch.from_numpy(np.flatnonzero(at >= 0))])


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("logp", float("nan"), "row 1 has nan over 3 tokens"),
        ("logp", 0.5, "row 1 has 0.5"),
        ("length", -1, "over -1 tokens"),
        ("key", b"l" * 16, "one completion stands in it twice"),
        ("digest", None, "digest"),
    ],
    ids=["nan", "positive", "length", "twice", "null"],
)
def test_a_crafted_shard_is_named_and_says_why(column, value, words, tmp_path):
    columns = {name: list(values) for name, values in COLUMNS.items()}
    columns[column][0] = value
    fields = [field.with_nullable(value is None and field.name == column) for field in SCHEMA]
    said = {"multiref.format": FORMAT, "multiref.reference": ADDRESS, "multiref.layout": ""}
    table = pa.Table.from_arrays(
        [pa.array(values, field.type) for values, field in zip(columns.values(), fields)], schema=pa.schema(fields, said)
    )
    stream = io.BytesIO()
    pq.write_table(table, stream, compression="none", use_dictionary=False)
    (tmp_path / "shards" / ADDRESS).mkdir(parents=True)
    put(tmp_path, stream.getvalue())
    with pytest.raises(StoreError, match=rf"The shard .*\.parquet was not written by multiref: .*{words}"):
        Store(tmp_path).sound(ADDRESS)


def test_a_packed_shard_is_refused_before_it_is_unpacked(tmp_path):
    """Ten million rows in a few kilobytes: what a reader of Parquet would unpack."""
    count = 10**7
    table = pa.table({"logp": pa.repeat(pa.scalar(-1.0), count)})
    stream = io.BytesIO()
    pq.write_table(table, stream)
    assert len(stream.getvalue()) < count / 50
    (tmp_path / "shards" / ADDRESS).mkdir(parents=True)
    put(tmp_path, stream.getvalue())
    with pytest.raises(StoreError, match="its columns are compressed"):
        Store(tmp_path).sound(ADDRESS)
    assert Store(tmp_path).manifest() == {}
