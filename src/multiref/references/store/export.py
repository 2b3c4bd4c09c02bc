"""Scores as a plain Parquet file, for people and programs that know nothing of `multiref`."""

import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from multiref._files import as_path
from multiref.errors import OutputError
from multiref.references.keys import KeyIndex, content_keys, text_of
from multiref.references.store.folder import Store

_VALUES = {"logp": pa.float64(), "length": pa.int32(), "truncated": pa.bool_()}


def export(store: Store, output: str | os.PathLike[str], *, references: Sequence[str] = ()) -> int:
    """One row per completion and reference: reference, address, key (hex), logp, length, truncated; by address and key, so that
    the same scores are the same file, however they are cut into shards. Returns the number of rows.

    Without `references` (names or beginnings of addresses), all of them.
    """
    schema = pa.schema({"reference": pa.string(), "address": pa.string(), "key": pa.string(), **_VALUES})
    return _write(as_path(output), schema, _long(store, references, schema))


def export_pairs(store: Store, output: str | os.PathLike[str], pairs: Sequence[Any], *, references: Sequence[str] = ()) -> int:
    """One row per pair: prompt, chosen, rejected (chat messages as JSON), and per reference `<name>/chosen_logps`,
    `<name>/rejected_logps`, `<name>/chosen_length`, `<name>/rejected_length`; null where there is no score.
    Returns the number of rows."""
    columns: dict[str, Any] = {
        side: [_plain(getattr(pair, side)) for pair in pairs] for side in ("prompt", "chosen", "rejected")
    }
    for address, name in _chosen(store, references).items():
        rows = store.sound(address)
        index = KeyIndex(rows.keys)
        for side in ("chosen", "rejected"):
            at = index.locate(content_keys((pair.prompt for pair in pairs), (getattr(pair, side) for pair in pairs)))
            for what, values in (("logps", rows.logps), ("length", rows.lengths)):
                found = values[at] if len(values) else [0] * len(at)
                columns[f"{name}/{side}_{what}"] = pa.array(found, mask=at < 0)
    table = pa.table(columns)
    return _write(as_path(output), table.schema, iter([table]))


def _long(store: Store, references: Sequence[str], schema: pa.Schema) -> Iterator[pa.Table]:
    for address, name in _chosen(store, references).items():
        rows = store.sound(address)
        index = KeyIndex(rows.keys)
        rows = rows.take(index.order[~index.repeated])
        count, raw = len(rows), rows.keys.tobytes().hex()
        keys = [raw[start : start + 32] for start in range(0, len(raw), 32)]
        columns = [[name] * count, [address] * count, keys, rows.logps, rows.lengths, rows.truncated]
        yield pa.Table.from_arrays([pa.array(column, field.type) for column, field in zip(columns, schema)], schema=schema)


def _chosen(store: Store, references: Sequence[str]) -> dict[str, str]:
    """Address → a name for its column, different for each."""
    notes = store.references()
    addresses = [store.named(name) for name in references] or list(notes)
    names = {a: notes[a]["seen"][-1]["name"] if notes[a]["seen"] else a[:8] for a in addresses}
    taken = list(names.values())
    return {a: name if taken.count(name) == 1 else f"{name}-{a[:8]}" for a, name in names.items()}


def _plain(text: Any) -> str:
    return text if isinstance(text, str) else text_of(text)


def _write(output: Path, schema: pa.Schema, tables: Iterator[pa.Table]) -> int:
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
