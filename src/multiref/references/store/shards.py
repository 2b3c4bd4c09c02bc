"""One shard: a Parquet file of scores of one reference, named by the checksum of its own bytes."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from multiref._files import open_file
from multiref.errors import StoreError
from multiref.references.keys import sort_keys

FORMAT = "2"  # of the shard's columns; a reader refuses a later one
BEFORE = "1"  # had no digests and no layout; still read
SCHEMA = pa.schema(
    [
        pa.field("key", pa.binary(16), nullable=False),
        pa.field("logp", pa.float64(), nullable=False),
        pa.field("length", pa.int32(), nullable=False),
        pa.field("truncated", pa.bool_(), nullable=False),
        pa.field("digest", pa.uint64(), nullable=False),
    ]
)
ROW_BYTES = 28  # a row has at least so many: key, log-probability, length
ABOVE = 1e-3  # how far above 0 rounding may lift a log-probability
_LARGEST = 2**31


@dataclass(frozen=True, eq=False)
class Rows:
    """Scores of N completions under one reference: keys [N] (V16), logps [N] float64, lengths [N] int32, truncated [N] bool,
    digests [N] uint64 (`Encoded.digest` of the ids that were scored; 0 where they are not known)."""

    keys: np.ndarray
    logps: np.ndarray
    lengths: np.ndarray
    truncated: np.ndarray
    digests: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))

    def __post_init__(self) -> None:
        if len(self.digests) != len(self.keys):
            object.__setattr__(self, "digests", np.zeros(len(self.keys), np.uint64))

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, where: np.ndarray) -> "Rows":
        return Rows(*(getattr(self, what)[where] for what in COLUMNS))

    @staticmethod
    def concatenate(parts: "list[Rows]") -> "Rows":
        """All rows of all parts, in order; N = 0 for no part."""
        if not parts:
            return Rows(np.empty(0, "V16"), np.empty(0), np.empty(0, np.int32), np.empty(0, bool), np.empty(0, np.uint64))
        return Rows(*(np.concatenate([getattr(part, what) for part in parts]) for what in COLUMNS))


COLUMNS = tuple(each.name for each in fields(Rows))


def encode(rows: Rows, identity: str, layout: str = "", halved: int = 0) -> bytes:
    """The bytes of a shard. The same rows of the same reference give the same bytes, so the name addresses the content.
    layout: how its rows were laid out in the model ("" where that is not known, as of a server). halved: as of `Scored`."""
    if not np.isfinite(rows.logps).all() and np.isnan(rows.logps).any():
        raise StoreError(
            f"{int(np.isnan(rows.logps).sum())} of {len(rows)} scores to be stored are not numbers. Expected log-probabilities."
        )
    columns = [
        pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(16), len(rows), [None, pa.py_buffer(np.ascontiguousarray(rows.keys).tobytes())]
        ),
        pa.array(np.asarray(rows.logps, np.float64)),
        pa.array(np.asarray(rows.lengths, np.int32)),
        pa.array(np.asarray(rows.truncated, bool)),
        pa.array(np.asarray(rows.digests, np.uint64)),
    ]
    said = {"multiref.format": FORMAT, "multiref.reference": identity, "multiref.layout": layout}
    schema = SCHEMA.with_metadata(said | ({"multiref.token_budget_halved_to": str(halved)} if halved else {}))
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.Table.from_arrays(columns, schema=schema), sink, compression="none", use_dictionary=False, write_statistics=False
    )
    content: bytes = sink.getvalue().to_pybytes()
    return content


def sound(path: Path) -> bool:
    """Whether the file is there and its bytes still have the checksum that is its name."""
    try:
        return bool(_content(path))
    except StoreError:
        return False


def describe(path: Path) -> dict[str, int]:
    """{"rows", "bytes"} of a shard. StoreError for a damaged one."""
    content = _content(path)
    return {"rows": int(_opened(content, path).metadata.num_rows), "bytes": len(content)}


def read(path: Path, identity: str, refuted: Collection[str] = ()) -> Rows:
    """The rows of a shard, after checking its checksum, its columns and its values. `StoreError` names a shard that is damaged,
    belongs to something else, was written by something else, or was scored in a layout that an audit refuted later."""
    file = _opened(_content(path), path)
    said = file.schema_arrow.metadata or {}
    metadata = {
        key: said.get(f"multiref.{key}".encode(), b"").decode(errors="replace") for key in ("format", "layout", "reference")
    }
    found = metadata["format"] or "none"
    if found not in (FORMAT, BEFORE):
        raise StoreError(
            f"The shard {path} has format {found}; this version reads {BEFORE} and {FORMAT}. Use the version of multiref that "
            "wrote it."
        )
    layout = metadata["layout"]
    if layout in refuted:
        raise StoreError(
            f"The shard {path} was scored in the layout {layout!r}, which a later audit on other rows found wrong for this "
            "model. Score the same data again."
        )
    if metadata["reference"] != identity:
        raise StoreError(
            f"The shard {path} lies under another reference than the one it was written for. Move it back, or remove it."
        )
    expected = SCHEMA if found == FORMAT else SCHEMA.remove(SCHEMA.get_field_index("digest"))
    if not file.schema_arrow.remove_metadata().equals(expected):
        raise _foreign(path, f"its columns are {', '.join(map(str, file.schema_arrow.remove_metadata()))}")
    try:
        table = file.read()
    except Exception as error:  # nothing but pyarrow runs here, which has a dozen kinds of them
        raise _foreign(path, f"Parquet's reader says: {error}") from error
    rows = _rows(table, found)
    if problem := _impossible(rows, table):
        raise _foreign(path, problem)
    return rows


def _content(path: Path) -> bytes:
    """Its bytes, which have the checksum that is its name: asking a damaged footer ends the process (pyarrow 26)."""
    with open_file(path, "a shard of a store", largest=_LARGEST, error=StoreError) as file:
        try:
            content = file.read()
        except OSError as error:
            raise StoreError(
                f"Cannot read the shard {path}: {error.strerror or error}. "
                "Make it readable, or remove it: its completions are then scored again."
            ) from error
    if hashlib.sha256(content).hexdigest() != path.stem:
        raise StoreError(
            f"The shard {path} is damaged: its {len(content):,} bytes do not have the checksum in its name. Score the same "
            "data again: only this shard's completions are scored anew. (Or restore the file from a copy.)"
        )
    return content


def _opened(content: bytes, path: Path) -> Any:
    """The Parquet file, once its footer is what a shard's can be: plain columns, with room for its rows."""
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        metadata = file.metadata
        places = product(range(metadata.num_row_groups), range(metadata.num_columns))
        parts = [metadata.row_group(i).column(j) for i, j in places]
        plain = all(p.compression == "UNCOMPRESSED" and set(p.encodings) <= {"PLAIN", "RLE", "BIT_PACKED"} for p in parts)
    except Exception as error:  # as above
        raise _foreign(path, f"Parquet's reader says: {error}") from error
    if not plain:
        raise _foreign(path, "its columns are compressed")
    if not 0 <= metadata.num_rows * ROW_BYTES <= len(content):
        raise _foreign(path, f"{metadata.num_rows:,} rows do not fit into its {len(content):,} bytes")
    return file


def _foreign(path: Path, problem: str) -> StoreError:
    return StoreError(
        f"The shard {path} was not written by multiref: {' '.join(problem.split())[:300]}. Score the same data again, "
        "and do not take over what else came with it."
    )


def _impossible(rows: Rows, table: Any) -> str | None:
    """What no scores can be; None where there is nothing of the kind."""
    if any(column.null_count for column in table.columns):
        return "a row is empty"
    bad = np.flatnonzero(np.isnan(rows.logps) | (rows.logps > ABOVE) | (rows.lengths < 0))
    if len(bad):
        return f"row {bad[0] + 1} has {rows.logps[bad[0]]} over {rows.lengths[bad[0]]} tokens as log-probability"
    return "one completion stands in it twice" if sort_keys(rows.keys)[1].any() else None


def _rows(table: Any, found: str) -> Rows:
    keys = table["key"].combine_chunks()
    return Rows(
        np.frombuffer(keys.buffers()[1] or b"", "V16")[keys.offset : keys.offset + len(keys)].copy(),
        table["logp"].to_numpy().copy(),  # copies, so that Arrow's buffers go with the table
        table["length"].to_numpy().copy(),
        table["truncated"].to_numpy(),
        table["digest"].to_numpy().copy() if found == FORMAT else np.zeros(len(keys), np.uint64),
    )
