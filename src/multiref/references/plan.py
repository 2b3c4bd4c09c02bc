"""Which completions are scored together. Planned from sorted content keys alone, so that every run of a job plans the same.

    completions → unique keys → groups by prompt, sorted → blocks of about `shard_size` completions → one shard each

What is in a block depends on the texts asked for and on the shard size; not on row order, on what was scored before, or on
where a run was killed. Batches are made inside a block, never across, so a block that is scored again gets the same bits (same
device, thread count and versions).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from multiref.data import as_pair
from multiref.data.pairs import list_unread, unread_columns
from multiref.data.text import words
from multiref.errors import ArgumentError, DataError
from multiref.references.keys import content_key
from multiref.references.protocol import Item

TOGETHER = (
    8  # completions of one prompt in one item: they share a row, and a row's attention grows with the square of its length
)


@dataclass(frozen=True, eq=False)
class Block:
    """What becomes one shard: items, and the keys [n] of their completions in the same order."""

    items: tuple[Item, ...]
    keys: tuple[bytes, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def size(self) -> int:
        """UTF-8-ish size of the text, for estimating time: characters of prompts and completions."""
        return sum(_length(item.prompt) + sum(map(_length, item.completions)) for item in self.items)

    def without(self, stored: Iterable[bytes]) -> "Block":
        """The part that is not stored yet. Items keep their order; a half-stored one keeps the completions that are missing."""
        have = frozenset(stored)
        keys = iter(self.keys)
        kept, left = [], []
        for item in self.items:
            mine = [(completion, next(keys)) for completion in item.completions]
            missing = [(completion, key) for completion, key in mine if key not in have]
            if missing:
                kept.append(Item(item.prompt, tuple(completion for completion, _ in missing), item.origin))
                left += [key for _, key in missing]
        return Block(tuple(kept), tuple(left))


class Asked(tuple[Any, Any]):
    """(prompt, completion), and in `origin` the row that asks for it, for messages."""

    origin: str

    @classmethod
    def by(cls, origin: str, prompt: Any, completion: Any) -> "Asked":
        made = cls((prompt, completion))
        made.origin = origin
        return made


def wanted(data: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Pairs, rows of TRL's preference format, or (prompt, completion) tuples → (prompt, completion), two for a pair."""
    unread: set[str] = set()
    for number, row in enumerate(data, 1):
        if isinstance(row, tuple) and len(row) == 2:
            if not all(isinstance(part, str | tuple | list) for part in row):
                kinds = ", ".join(type(part).__name__ for part in row)
                raise DataError(f"row {number}: expected (prompt, completion) as text, found ({kinds}).")
            prompt, completion = (tuple(part) if isinstance(part, list) else part for part in row)
            yield Asked.by(f"row {number}", prompt, completion)
        elif isinstance(row, Mapping) or hasattr(row, "chosen"):
            unread |= unread_columns(row)
            pair = as_pair(row, origin=f"row {number}") if isinstance(row, Mapping) else row
            origin = pair.origin or f"row {number}"
            yield Asked.by(origin, pair.prompt, pair.chosen)
            yield Asked.by(origin, pair.prompt, pair.rejected)
        else:
            raise DataError(
                f"row {number}: found {type(row).__name__}; expected a pair (prompt, chosen, rejected) or a tuple (prompt, "
                f"completion)."
            )
    list_unread(unread, "The rows")


def shard_size_for(completions: int) -> int:
    """Completions per shard, when the user does not say: about 64 shards a job, at least 256 and at most 8,192 completions
    each."""
    return max(256, min(8192, completions // 64))


def plan(texts: Iterable[tuple[Any, Any]], *, shard_size: int | None = None) -> list[Block]:
    """(prompt, completion) … → blocks. Repeated texts count once; the order of the texts does not matter.

    Completions of one prompt stay together (at most `TOGETHER` in an item), so that a scorer can share the prompt.
    An empty prompt is
    nothing to share: its completions are items of their own.
    """
    if shard_size is not None and shard_size < 1:
        raise ArgumentError(f"shard_size is {shard_size}; expected at least 1 completion per shard.")
    unique: dict[bytes, tuple[bytes, Any, Any, str]] = {}
    for text in texts:
        prompt, completion = text
        key = content_key(prompt, completion)
        if key not in unique:
            unique[key] = (content_key(prompt, ""), prompt, completion, getattr(text, "origin", ""))
    size = shard_size or shard_size_for(len(unique))
    ordered = sorted((prompt_key, key) for key, (prompt_key, *_) in unique.items())
    blocks: list[Block] = []
    items: list[Item] = []
    keys: list[bytes] = []
    for _, group in groupby(ordered, key=lambda entry: entry[0]):
        mine = [key for _, key in group]
        most = TOGETHER if unique[mine[0]][1] else 1
        for start in range(0, len(mine), most):
            part = mine[start : start + most]
            origins = dict.fromkeys(unique[key][3] for key in part if unique[key][3])
            items.append(Item(unique[part[0]][1], tuple(unique[key][2] for key in part), ", ".join(origins)))
            keys += part
            if len(keys) >= size:
                blocks.append(Block(tuple(items), tuple(keys)))
                items, keys = [], []
    if keys:
        blocks.append(Block(tuple(items), tuple(keys)))
    return blocks


def _length(text: Any) -> int:
    return len(words(text))
