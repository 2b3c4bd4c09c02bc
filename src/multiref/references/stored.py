"""Scores straight from a store, with no reference at hand: for training, inspecting and plotting on a machine without the
models.

The rows of each reference are partitioned on disk by the beginning of their content keys, and joined partition by partition:

    shards → partitions, files without names → each completion once, by key → a stretch of the columns [K, N]

so that memory is needed for a few shards and one partition, however many completions and references there are.
"""

import io
import os
from collections.abc import Mapping, Sequence
from typing import IO, Any

import numpy as np
import torch

from multiref._files import MIB
from multiref.errors import OutputError, StoreError
from multiref.references.keys import KeyIndex, as_bytes, partition_starts, sort_keys
from multiref.references.mapped import let_go, unnamed_file, zeros
from multiref.references.scores import SequenceScores, check_names
from multiref.references.store import Store

_KINDS = {"logps": np.float64, "lengths": np.int64, "truncated": bool, "digests": np.uint64}
_ROW = np.dtype([("keys", "V16"), ("logps", "f8"), ("lengths", "i4"), ("truncated", "?"), ("digests", "u8")])
PARTITION, MOST = 8 * MIB, 64  # bytes of a partition, about; how many there are at most, for each is an open file


def read_scores(store: str | os.PathLike[str] | Store, names: Sequence[str] | None = None) -> SequenceScores:
    """The completions that every named reference has a score for, [K, N], by key; on disk where they are many.

    Args:
        store: a folder of scores that exists, or a `Store`.
        names: names under which the references were scored, or the beginnings of their addresses; None:
            all that are there, by the alphabet.

    Errors: `StoreError` for a name that is unknown or ambiguous, for a damaged shard, and where no completion has all scores;
    `OutputError` where the disk has no room.
    """
    store = store if isinstance(store, Store) else Store(store, create=False)
    named, notes = _named(store, names), store.references()
    return join(store, named, [notes[address]["identity"] for address in named.values()])


def join(
    store: Store, named: Mapping[str, str], identities: Sequence[Mapping[str, Any]], wanted: np.ndarray | None = None
) -> SequenceScores:
    """Name → address of K references: their scores of the completions with these keys, [N] ascending; None: of all that every
    reference has. Errors as of `read_scores`, also where one of the wanted has no score."""
    check_names(list(named))
    size = max(sum(path.stat().st_size for path in store.shards(address) if path.exists()) for address in named.values())
    starts = partition_starts(min(MOST, 1 + size // PARTITION))
    for k, address in enumerate(named.values()):
        files = _partitioned(store, address, starts)
        if k == 0:
            count = sum(file.tell() for file in files) // _ROW.itemsize if wanted is None else len(wanted)
            keys, there, cuts = zeros(store.folder, (count,), "V16"), np.zeros(count, bool), [0]
            columns = {what: zeros(store.folder, (len(named), count), kind) for what, kind in _KINDS.items()}
            mapped = keys, *columns.values()
            if wanted is not None:
                keys[:], there[:], cuts = wanted, True, [*np.searchsorted(as_bytes(wanted), starts).tolist(), count]
        for number, file in enumerate(files):
            rows = _read(file)
            if len(cuts) == number + 1:  # all of the first reference's
                order, repeated = sort_keys(rows["keys"])
                own = rows["keys"][order[~repeated]]
                cuts.append(cuts[-1] + len(own))
                keys[cuts[-2] : cuts[-1]], there[cuts[-2] : cuts[-1]] = own, True
            part = slice(*cuts[number : number + 2])
            at = KeyIndex(rows["keys"]).locate(keys[part])
            there[part] &= at >= 0
            for what, values in columns.items() if len(rows) else ():
                values[k, part] = rows[what][at]
            let_go(mapped)
        if wanted is None and not there.any():
            raise StoreError(
                f"In {store.folder} no completion has a score under all of {', '.join(named)}. Score the same data under each "
                "of them, or name fewer."
            )
    if wanted is not None and not there.all():
        raise StoreError(
            f"{int((~there).sum()):,} of {len(there):,} completions lost a score in {store.folder} meanwhile: "
            "another process set it aside, or removed it. Run the same again."
        )
    kept = mapped if there.all() else tuple(_kept(each, there) for each in mapped)
    logps, lengths, truncated = map(torch.from_numpy, kept[1:4])
    return SequenceScores(tuple(named), kept[0], logps, lengths, truncated, kept[4], tuple(identities), mapped)


def _kept(array: np.ndarray, there: np.ndarray) -> np.ndarray:
    """[..., N] less the columns that are not there: the others move up."""
    count = int(there.sum())
    for row in array.reshape(-1, len(there)):
        row[:count] = row[there]
        let_go([array])
    return array[..., :count]


def _partitioned(store: Store, address: str, starts: np.ndarray) -> list[IO[bytes]]:
    """A reference's rows, those of each partition in a file; of equal keys the first in the order of the shards comes first."""
    files: list[IO[bytes]] = [unnamed_file(store.folder) for _ in starts] if len(starts) > 1 else [io.BytesIO()]
    try:
        for part in store.sound_parts(address):
            rows = np.empty(len(part), _ROW)
            for what in _ROW.names or ():
                rows[what] = getattr(part, what)
            number = np.searchsorted(starts[1:], as_bytes(part.keys), side="right")
            order = np.argsort(number, kind="stable")
            cuts = np.searchsorted(number[order], np.arange(1, len(starts)))
            for file, piece in zip(files, np.split(rows[order], cuts)):
                file.write(piece.tobytes())
        for file in files:
            file.flush()
    except OSError as error:
        raise OutputError(f"cannot hold scores on disk in {store.folder}: {error}. Free some space.") from error
    return files


def _read(file: IO[bytes]) -> np.ndarray:
    """The rows of a partition, which is then gone."""
    with file:
        file.seek(0)
        return np.frombuffer(file.read(), _ROW)


def _named(store: Store, names: Sequence[str] | None) -> dict[str, str]:
    """Name → address, in the order asked."""
    if names is not None:
        return {name: store.named(name) for name in names}
    named: dict[str, str] = {}
    for address, name in sorted(store.names().items(), key=lambda entry: entry[1]):
        named[f"{name}-{address[:8]}" if name in named else name] = address
    if not named:
        raise StoreError(f"{store.folder} holds no scores yet. Fill it with `multiref score`.")
    return named
