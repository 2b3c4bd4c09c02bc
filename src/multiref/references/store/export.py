"""Scores as a plain Parquet file, for people and programs that know nothing of `multiref`."""

import itertools
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from multiref._files import as_path, is_device
from multiref.errors import ArgumentError, OutputError
from multiref.references.keys import MOST_PARTITIONS, KeyIndex, as_bytes, partition_starts, side_keys, sort_keys, text_of
from multiref.references.store.folder import Store
from multiref.references.store.shards import Rows

_TEXTS = {name: pa.string() for name in ("reference", "address", "key")}
_SCHEMA = pa.schema({**_TEXTS, "logp": pa.float64(), "length": pa.int32(), "truncated": pa.bool_()})
_ROWS = 2**16  # of a table


def export(store: Store, output: str | os.PathLike[str], *, references: Sequence[str] = ()) -> int:
    """One row per completion and reference: reference, address, key (hex), logp, length, truncated; by address and key, so that
    the same scores are the same file, however they are cut into shards. Returns the number of rows.

    Without `references` (names or beginnings of addresses), all of them.
    """
    return _write(as_path(output), _SCHEMA, _long(store, references))


def export_pairs(store: Store, output: str | os.PathLike[str], pairs: Sequence[Any], *, references: Sequence[str] = ()) -> int:
    """One row per pair: prompt, chosen, rejected (chat messages as JSON), and per reference `<name>/chosen_logps`,
    `<name>/rejected_logps`, `<name>/chosen_length`, `<name>/rejected_length`; null where there is no score.
    Returns the number of rows."""
    columns: dict[str, Any] = {
        side: [text if isinstance(text := getattr(pair, side), str) else text_of(text) for pair in pairs]
        for side in ("prompt", "chosen", "rejected")
    }
    keys = side_keys(pairs)
    for address, name in _chosen(store, references).items():
        rows = store.sound(address)
        index = KeyIndex(rows.keys)
        for side, wanted in zip(("chosen", "rejected"), keys.T):
            at = index.locate(wanted)
            for what, values in (("logps", rows.logps), ("length", rows.lengths)):
                found = values[at] if len(values) else [0] * len(at)
                columns[f"{name}/{side}_{what}"] = pa.array(found, mask=at < 0)
    table = pa.table(columns)
    return _write(as_path(output), table.schema, iter([table]))


def export_partitions(store: Store, output: str | os.PathLike[str], *, partitions: int, references: Sequence[str] = ()) -> int:
    """The same rows as a folder, here or at a URL of fsspec: <reference>/part-<number>.parquet, by the beginning of the key, so
    that part n of one reference joins part n of another. Memory for one reference's numbers. Returns the number of rows."""
    if not 1 <= partitions <= MOST_PARTITIONS:
        raise ArgumentError(f"partitions is {partitions}; expected 1 to {MOST_PARTITIONS:,}.")
    import fsspec

    chosen, count = _chosen(store, references), 0
    try:
        system, root = fsspec.core.url_to_fs(os.fspath(output))
        for address, name in chosen.items():
            rows = _distinct(store, address)
            starts = np.searchsorted(as_bytes(rows.keys), partition_starts(partitions))
            system.makedirs(f"{root}/{_file_name(name)}", exist_ok=True)
            for number, (start, stop) in enumerate(itertools.pairwise([*starts.tolist(), len(rows)])):
                with system.transaction, system.open(f"{root}/{_file_name(name)}/part-{number:05}.parquet", "wb") as file:
                    pq.write_table(_table(rows, name, address, slice(start, stop)), file)
            count += len(rows)
    except (OSError, ValueError, ImportError) as error:  # ValueError, ImportError: no such protocol
        raise OutputError(
            f"Cannot write {output}: {getattr(error, 'strerror', None) or error}. Choose a writable place."
        ) from error
    return count


def _file_name(name: str) -> str:
    """A reference's name as a folder's: what could leave the folder, or hide, is written as %xx."""
    return re.sub(r"^\.", "%2E", quote(name, safe=" "))


def _distinct(store: Store, address: str) -> Rows:
    """Each completion once, by key."""
    rows = store.sound(address)
    order, repeated = sort_keys(rows.keys)
    return rows.take(order[~repeated])


def _table(rows: Rows, name: str, address: str, part: slice) -> pa.Table:
    keys, raw = rows.keys[part], rows.keys[part].tobytes().hex()
    written = [raw[start : start + 32] for start in range(0, len(raw), 32)]
    values = rows.logps[part], rows.lengths[part], rows.truncated[part]
    columns = [[name] * len(keys), [address] * len(keys), written, *values]
    return pa.Table.from_arrays([pa.array(column, field.type) for column, field in zip(columns, _SCHEMA)], schema=_SCHEMA)


def _long(store: Store, references: Sequence[str]) -> Iterator[pa.Table]:
    for address, name in _chosen(store, references).items():
        rows = _distinct(store, address)
        for start in range(0, len(rows), _ROWS):
            yield _table(rows, name, address, slice(start, start + _ROWS))


def _chosen(store: Store, references: Sequence[str]) -> dict[str, str]:
    """Address → a name for its column, different for each."""
    known = store.names()
    names = {address: known[address] for address in map(store.named, references)} or known
    taken = list(names.values())
    return {a: name if taken.count(name) == 1 else f"{name}-{a[:8]}" for a, name in names.items()}


def _write(output: Path, schema: pa.Schema, tables: Iterator[pa.Table]) -> int:
    if is_device(output):
        raise OutputError(f"{output} is a device or a pipe; expected the name of a Parquet file.")
    if output.suffix.lower() not in (".parquet", ".pq", ""):
        raise OutputError(f"{output}: scores are written as Parquet. Expected a name that ends in .parquet.")
    temporary = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}.part")
    count = 0
    try:
        with pq.ParquetWriter(temporary, schema) as writer:
            for table in tables:
                writer.write_table(table)
                count += table.num_rows
        os.replace(temporary, output)
    except OSError as error:
        raise OutputError(f"Cannot write {output}: {error.strerror or error}. Choose a writable folder.") from error
    finally:
        temporary.unlink(missing_ok=True)
    return count
