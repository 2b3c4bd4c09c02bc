"""Which completions are scored together. Planned from sorted content keys alone, so that every run of a job plans the same.

    completions → unique keys → groups by prompt, sorted → blocks of about `shard_size` completions → one shard each

What is in a block depends on the texts asked for and on the shard size; not on row order, on what was scored before, or on
where a run was killed. Batches are made inside a block, never across, so a block that is scored again gets the same bits (same
device, thread count and versions).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from multiref._made import Made
from multiref.data import Pair, as_pair
from multiref.data.pairs import list_unread, unread_columns
from multiref.data.spooled import Joined, SpooledPairs
from multiref.data.text import words
from multiref.errors import ArgumentError, DataError
from multiref.references.keys import KEY_BYTES, key_of, sort_keys, text_of
from multiref.references.protocol import Item

TOGETHER = 8  # completions of one prompt in one item: they share a row, whose attention grows with the square of its length


@dataclass(frozen=True, eq=False)
class Block:
    """What becomes one shard: items, and the keys [n] of their completions in the same order. places [n]: of these keys among
    the job's."""

    items: tuple[Item, ...]
    keys: tuple[bytes, ...]
    places: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.keys)

    def size(self) -> int:
        """UTF-8-ish size of the text, for estimating time: characters of prompts and completions."""
        return sum(len(words(text)) for item in self.items for text in (item.prompt, *item.completions))


class Asked(tuple[Any, Any]):
    """(prompt, completion), and in `origin` the row that asks for it, for messages."""

    origin: str

    @classmethod
    def by(cls, origin: str, prompt: Any, completion: Any) -> "Asked":
        made = cls((prompt, completion))
        made.origin = origin
        return made


class Texts:
    """The N completions that are asked for: of pairs, two each, which stay where they are (in memory, or on disk); else a list.

    rows: how many were given. stride: completions of one that is held here. characters [N], prompt_characters [held]: how long
    they are; nothing [held]: an empty prompt.
    """

    def __init__(self, data: Iterable[Any]) -> None:
        on_disk = isinstance(data, SpooledPairs | Joined)
        pairs = on_disk or (isinstance(data, Sequence) and all(isinstance(row, Pair) for row in data))
        given: Sequence[Any] = data if pairs and isinstance(data, Sequence) else list(data)
        self.rows, self._rows = len(given), given if pairs else list(wanted(given))
        self.stride = 2 if pairs else 1
        self._last: tuple[int, Any] = -1, None

    def __len__(self) -> int:
        return len(self._rows) * self.stride

    def __getitem__(self, index: int) -> Asked:
        number, side = divmod(index, self.stride)
        if self._last[0] != number:
            self._last = number, self._rows[number]
        return self._of(number, self._last[1])[side]

    def __iter__(self) -> Iterator[Asked]:
        for number, row in enumerate(self._rows):
            yield from self._of(number, row)

    def _of(self, number: int, row: Any) -> Sequence[Asked]:
        if self.stride == 1:
            return (row,)
        origin = row.origin or f"row {number + 1}"
        return Asked.by(origin, row.prompt, row.chosen), Asked.by(origin, row.prompt, row.rejected)

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Content keys of the texts [N] and of the prompts [rows]."""
        rows = len(self._rows)
        raw, prompts = bytearray(KEY_BYTES * len(self)), bytearray(KEY_BYTES * rows)
        self.characters, self.prompt_characters = np.zeros(len(self), np.int32), np.zeros(rows, np.int32)
        self.nothing = np.zeros(rows, bool)
        for number, row in enumerate(self._rows):
            for side, (prompt, completion) in enumerate(self._of(number, row)):
                at = number * self.stride + side
                if side == 0:
                    written = text_of(prompt)
                    prompts[KEY_BYTES * number : KEY_BYTES * (number + 1)] = key_of(written, '""')
                    self.prompt_characters[number], self.nothing[number] = len(words(prompt)), not prompt
                raw[KEY_BYTES * at : KEY_BYTES * (at + 1)] = key_of(written, text_of(completion))
                self.characters[at] = len(words(completion))
        return np.frombuffer(raw, f"V{KEY_BYTES}"), np.frombuffer(prompts, f"V{KEY_BYTES}")


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


class Blocks(Made[Block]):
    """The blocks of a job, each made when it is asked for: what is held is a few numbers a completion, and where its text is.

    keys: [U] the different content keys, ascending. For the completions in the order of the plan: `_place` [M], which key;
    `_item` [M], which item. A block is a stretch of them, of which `_cuts` [B + 1] are the bounds. `text` [U]: of a key, the
    first text that has it.
    """

    def __init__(
        self, texts: "Texts", keys: np.ndarray, text: np.ndarray, place: np.ndarray, item: np.ndarray, cuts: np.ndarray
    ) -> None:
        self.keys, self._texts, self.text = keys, texts, text
        self._place, self._item, self._cuts = place, item, cuts
        self._last: tuple[int, Block] | None = None

    def __len__(self) -> int:
        return len(self._cuts) - 1

    def made(self, place: int) -> Block:
        if self._last is None or self._last[0] != place:
            self._last = None  # one at a time in memory
            self._last = place, self._cut_out(slice(*self._cuts[place : place + 2]))
        return self._last[1]

    def _cut_out(self, part: slice) -> Block:
        places, items = self._place[part], []
        wanted = self.text[places]
        there = {i: self._texts[i] for i in np.sort(wanted).tolist()}  # each row once
        texts = map(there.pop, wanted.tolist())  # what is in an item is held once
        for size in np.diff(_bounds(self._item[part])).tolist():
            mine = list(islice(texts, size))
            origins = dict.fromkeys(text.origin for text in mine if text.origin)
            items.append(Item(mine[0][0], tuple(completion for _, completion in mine), ", ".join(origins)))
        return Block(tuple(items), tuple(self.keys[places].tolist()), places)

    @property
    def completions(self) -> int:
        """How many there are in all blocks."""
        return len(self._place)

    def without(self, there: np.ndarray) -> "Blocks":
        """[U] bool, the keys that are stored → the blocks less these. Items keep their order; a half-stored one keeps the
        completions that are missing."""
        if not there.any():
            return self
        kept = ~there[self._place]
        cuts = np.unique(np.concatenate([[0], np.cumsum(kept)])[self._cuts])
        return Blocks(self._texts, self.keys, self.text, self._place[kept], self._item[kept], cuts)

    def text_of(self, place: int) -> "Asked":
        """The text that has this key."""
        return self._texts[int(self.text[place])]

    def size(self) -> int:
        """Characters of all blocks, as `Block.size` counts them."""
        return int(self._sizes()[0].sum())

    def _sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """Per item: characters (its prompt once), and the completions."""
        if not len(self):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        bounds, text = _bounds(self._item), self.text[self._place]
        starts, counts = bounds[:-1], np.diff(bounds)
        sums = np.add.reduceat(self._texts.characters[text], starts, dtype=np.int64)
        return sums + self._texts.prompt_characters[text[starts] // self._texts.stride], counts

    def block_sizes(self) -> np.ndarray:
        """[B] characters of each block."""
        return np.add.reduceat(self._sizes()[0], self._first())

    def _first(self) -> np.ndarray:
        """[B] the first item of each block."""
        return np.searchsorted(_bounds(self._item)[:-1], self._cuts[:-1])

    def telling(self) -> list[Block]:
        """The blocks with the longest text, the widest group and the widest spread of lengths, and one more: blocks are in the
        order of hashes, so the first is as good as a random one."""
        sizes, counts = self._sizes()
        first = self._first()
        longest, widest = (np.maximum.reduceat(values, first) for values in (sizes, counts))
        spread = longest / np.maximum(1, np.minimum.reduceat(sizes, first))
        return [self[i] for i in dict.fromkeys([*(int(values.argmax()) for values in (longest, widest, spread)), 0])]


def shard_size_for(completions: int) -> int:
    """Completions per shard, when the user does not say: about 64 shards a job, at least 256 and at most 8,192 completions
    each."""
    return max(256, min(8192, completions // 64))


def plan(data: "Iterable[Any] | Texts", *, shard_size: int | None = None) -> Blocks:
    """What is asked for → blocks. Repeated texts count once; the order of the texts does not matter.

    Completions of one prompt stay together (at most `TOGETHER` in an item), so that a scorer can share the prompt.
    An empty prompt is nothing to share: its completions are items of their own.
    """
    if shard_size is not None and shard_size < 1:
        raise ArgumentError(f"shard_size is {shard_size}; expected at least 1 completion per shard.")
    texts = data if isinstance(data, Texts) else Texts(data)
    keys, prompts = texts.read()
    order, repeated = sort_keys(prompts)
    small = order.dtype
    rank = np.empty(len(prompts), small)  # of prompts, by their keys
    rank[order] = np.cumsum(~repeated, dtype=small)
    order, repeated = sort_keys(keys)
    text = order[~repeated]
    del prompts, order, repeated
    keys = keys[text]
    ranks = rank[text // texts.stride]
    place = np.argsort(ranks, kind="stable").astype(small)  # by prompt, then by key
    ranks = ranks[place]
    within = np.arange(len(place), dtype=small)  # of its prompt's completions, which it is
    starts = np.where(np.concatenate([[True], ranks[1:] != ranks[:-1]]), within, 0)
    within -= np.maximum.accumulate(starts, out=starts)
    del ranks, starts
    item = np.cumsum((within % TOGETHER == 0) | texts.nothing[text[place] // texts.stride], dtype=small)
    del within
    size, bounds, cuts = shard_size or shard_size_for(len(keys)), _bounds(item), [0]
    while cuts[-1] < len(keys):
        cuts.append(int(bounds[min(int(np.searchsorted(bounds, cuts[-1] + size)), len(bounds) - 1)]))
    return Blocks(texts, keys, text, place, item, np.array(cuts))


def _bounds(numbers: np.ndarray) -> np.ndarray:
    """Where stretches of equal numbers begin, and the end."""
    changes = np.flatnonzero(numbers[1:] != numbers[:-1]).astype(numbers.dtype)
    changes += 1
    return np.concatenate([[0], changes, [len(numbers)]], dtype=numbers.dtype)
