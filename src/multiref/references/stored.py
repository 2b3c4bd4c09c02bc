"""Scores straight from a store, with no reference at hand: for training, inspecting and plotting on a machine without the
models."""

import os
from collections.abc import Sequence

import numpy as np
import torch

from multiref.errors import StoreError
from multiref.references.keys import KeyIndex
from multiref.references.scores import SequenceScores
from multiref.references.store import Store


def read_scores(store: str | os.PathLike[str] | Store, names: Sequence[str] | None = None) -> SequenceScores:
    """The completions that every named reference has a score for, [K, N].

    Args:
        store: a folder of scores that exists, or a `Store`.
        names: names under which the references were scored, or the beginnings of their addresses; None:
            all that are there, by the alphabet.

    Errors: `StoreError` for a name that is unknown or ambiguous, for a damaged shard, and where no completion has all scores.
    """
    store = store if isinstance(store, Store) else Store(store, create=False)
    named = _named(store, names)
    keys, there = np.empty(0, "V16"), np.empty(0, bool)
    kinds = {"logps": np.float64, "lengths": np.int64, "truncated": bool, "digests": np.uint64}
    found: dict[str, np.ndarray] = {what: np.empty((len(named), 0), kind) for what, kind in kinds.items()}
    for k, address in enumerate(named.values()):
        rows = store.sound(address)
        index = KeyIndex(rows.keys)
        if k == 0:
            keys = rows.keys[index.order[~index.repeated]]
            there = np.ones(len(keys), bool)
            found = {what: np.empty((len(named), len(keys)), kind) for what, kind in kinds.items()}
        at = index.locate(keys)
        there &= at >= 0
        if not there.any():
            names_all = ", ".join(named)
            raise StoreError(
                f"In {store.folder} no completion has a score under all of {names_all}. Score the same data under each, or "
                "name fewer."
            )
        for what, values in found.items():
            values[k] = getattr(rows, what)[at]
        del rows, index  # one reference's rows at a time
    if not there.all():
        keys, found = keys[there], {what: values[:, there] for what, values in found.items()}
    logps, lengths, truncated = (torch.from_numpy(found[what]) for what in ("logps", "lengths", "truncated"))
    notes = store.references()
    identities = tuple(notes[address]["identity"] for address in named.values())
    return SequenceScores(tuple(named), keys, logps, lengths, truncated, digests=found["digests"], identities=identities)


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
