"""Scores straight from a store, with no reference at hand: for training, inspecting and plotting on a machine without the
models.

The rows of each reference are partitioned on disk by the beginning of their content keys, and joined partition by partition:

    shards → partitions, files without names → each completion once, by key → a stretch of the columns [K, N]

so that memory is needed for a few shards and one partition, however many completions and references there are.
"""

import io
import os
from collections.abc import Mapping, Sequence
from typing import IO

import numpy as np
import torch

from multiref._files import MIB
from multiref.errors import OutputError, StoreError
from multiref.references.keys import KeyIndex, as_bytes, partition_starts, sort_keys
from multiref.references.mapped import Mapped, unnamed_file
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
    check_names(list(named))
    mapped, there = join_rows(store, list(named.values()))
    if not there.any():
        raise StoreError(
            f"In {store.folder} no completion has a score under all of {', '.join(named)}. Score the same data under each of "
            f"them, or name fewer."
        )
    identities = tuple(notes[address]["identity"] for address in named.values())
    return as_scores(tuple(named), mapped, identities, there)


def join_rows(store: Store, addresses: Sequence[str], keys: np.ndarray | None = None) -> tuple[Mapped, np.ndarray]:
    """The scores of K references: of the completions with these keys, [N] ascending; None: of all that the first reference has.

    Returns: `keys` [N], ascending, and the columns [K, N]; and [N] bool, which of them every reference has.
    """
    size = max(sum(path.stat().st_size for path in store.shards(address) if path.exists()) for address in addresses)
    starts = partition_starts(min(MOST, 1 + size // PARTITION))
    for k, address in enumerate(addresses):
        files = _partitioned(store, address, starts)
        if k == 0:
            count = sum(file.tell() for file in files) // _ROW.itemsize if keys is None else len(keys)
            columns = {what: ((len(addresses), count), kind) for what, kind in _KINDS.items()}
            mapped, there = Mapped(store.folder, {"keys": ((count,), "V16"), **columns}), np.zeros(count, bool)
            wanted, cuts = mapped.arrays["keys"], [0]
            if keys is not None:
                wanted[:], there[:], cuts = keys, True, [*np.searchsorted(as_bytes(keys), starts).tolist(), count]
        for number, file in enumerate(files):
            found = _read(file)
            if len(cuts) == number + 1:  # they are as yet the first reference's own
                order, repeated = sort_keys(found["keys"])
                own = found["keys"][order[~repeated]]
                cuts.append(cuts[-1] + len(own))
                wanted[cuts[-2] : cuts[-1]], there[cuts[-2] : cuts[-1]] = own, True
            part = slice(*cuts[number : number + 2])
            at = KeyIndex(found["keys"]).locate(wanted[part])
            there[part] &= at >= 0
            for what in _KINDS if len(found) else ():
                mapped.arrays[what][k, part] = found[what][at]
            mapped.let_go()
        if not there.any():
            break
    return mapped, there


def as_scores(
    names: tuple[str, ...], mapped: Mapped, identities: Sequence[Mapping[str, object]], there: np.ndarray
) -> SequenceScores:
    """What was joined, less what is not there."""
    keys, *columns = (mapped.kept(what, there) for what in ("keys", *_KINDS))
    logps, lengths, truncated = map(torch.from_numpy, columns[:3])
    return SequenceScores(names, keys, logps, lengths, truncated, columns[3], tuple(identities), mapped)


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
