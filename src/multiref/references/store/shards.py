"""One shard: a Parquet file of scores of one reference, named by the checksum of its own bytes."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from multiref.errors import StoreError

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


def encode(rows: Rows, identity: str, layout: str = "") -> bytes:
    """The bytes of a shard. The same rows of the same reference give the same bytes, so the name addresses the content.
    layout: how its rows were laid out in the model ("" where that is not known, as of a server)."""
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
    schema = SCHEMA.with_metadata({"multiref.format": FORMAT, "multiref.reference": identity, "multiref.layout": layout})
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.Table.from_arrays(columns, schema=schema), sink, compression="none", use_dictionary=False, write_statistics=False
    )
    content: bytes = sink.getvalue().to_pybytes()
    return content


def sound(path: Path) -> bool:
    """Whether the file is there and its bytes still have the checksum that is its name."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == path.stem
    except FileNotFoundError:
        return False


def read(path: Path, identity: str, refuted: Collection[str] = ()) -> Rows:
    """The rows of a shard, after checking its checksum. `StoreError` names a shard that is damaged, belongs to something
    else, or was scored in a layout that an audit refuted later."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StoreError(f"Cannot read the shard {path}: {error.strerror or error}.") from error
    if hashlib.sha256(content).hexdigest() != path.stem:
        raise StoreError(
            f"The shard {path} is damaged: its {len(content):,} bytes do not have the checksum in its name. Score the same "
            f"data again: only "
            "this shard's completions are scored anew. (Or restore the file from a copy.)"
        )
    table = pq.read_table(pa.BufferReader(content))
    metadata = table.schema.metadata or {}
    found = metadata.get(b"multiref.format", b"none").decode()
    if found not in (FORMAT, BEFORE):
        raise StoreError(
            f"The shard {path} has format {found}; this version reads {BEFORE} and {FORMAT}. Use the version of multiref that "
            "wrote it."
        )
    layout = metadata.get(b"multiref.layout", b"").decode()
    if layout in refuted:
        raise StoreError(
            f"The shard {path} was scored in the layout {layout!r}, which a later audit on other rows found wrong for this "
            "model. Score the same data again."
        )
    if metadata.get(b"multiref.reference", b"").decode() != identity:
        raise StoreError(
            f"The shard {path} lies under another reference than the one it was written for. Move it back, or remove it."
        )
    keys = table["key"].combine_chunks()
    return Rows(
        np.frombuffer(keys.buffers()[1] or b"", "V16")[keys.offset : keys.offset + len(keys)].copy(),
        table["logp"].to_numpy().copy(),  # copies, so that Arrow's buffers go with the table
        table["length"].to_numpy().copy(),
        table["truncated"].to_numpy(),
        table["digest"].to_numpy().copy() if found == FORMAT else np.zeros(len(keys), np.uint64),
    )
