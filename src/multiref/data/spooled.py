"""Pairs on disk: one Arrow file in a folder of ours, mapped into memory and read where it is asked, so that their number costs
no memory."""

import json
import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

from multiref._files import MIB
from multiref._made import Made
from multiref.data.pairs import Pair
from multiref.data.text import Conversation, Text
from multiref.errors import OutputError

T = TypeVar("T")
_REST = tuple(each.name for each in fields(Pair))[3:]  # origin, margin, …
COLUMNS = "prompt", "chosen", "rejected", "rest"
_ROWS, _BYTES = 256, 4 * MIB  # of one record batch: what is read for a row that is asked for
_HELD = 64  # single rows read until their pages are let go: each may have brought 16 of them


class SpooledPairs(Made[Pair]):
    """P pairs of an Arrow file (prompt, chosen, rejected and the rest, as JSON), or those at some places of it.

    The file has no name any more once it is open: nothing is left behind, however the process ends, and two processes on one
    folder do not meet. Pages that were read are let go, so that they do not count as memory of this process.
    """

    def __init__(self, mapped: "_Mapped", folder: Path, at: np.ndarray | None = None) -> None:
        self._mapped, self.folder, self._at = mapped, folder, at

    @classmethod
    def write(cls, pairs: Iterable[Pair], folder: str | os.PathLike[str]) -> Self:
        """The pairs, written into this folder, one batch of rows in memory at a time. OutputError where that cannot be done."""
        return cls.write_packed(map(packed, pairs), folder)

    @classmethod
    def write_packed(cls, rows: Iterable[list[str]], folder: str | os.PathLike[str]) -> Self:
        """The same of pairs that are `packed`."""
        import pyarrow

        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                starts = _write(rows, file)
                file.flush()
                return cls(_Mapped(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), starts), Path(folder))
        except (OSError, pyarrow.ArrowException) as error:
            why = getattr(error, "strerror", None) or error
            raise OutputError(
                f"cannot write the pairs into {folder}: {why}. Free some space, or choose another folder."
            ) from error

    def __len__(self) -> int:
        return len(self._mapped) if self._at is None else len(self._at)

    def made(self, place: int) -> Pair:
        return self._mapped.row(place if self._at is None else int(self._at[place]))

    def stretch(self, places: range) -> "SpooledPairs":
        return self.take(np.arange(places.start, places.stop, places.step))

    def __iter__(self) -> Iterator[Pair]:
        return self._mapped.rows() if self._at is None else map(self._mapped.row, map(int, self._at))

    def take(self, at: np.ndarray) -> "SpooledPairs":
        """The pairs at these places, of the same file."""
        return SpooledPairs(self._mapped, self.folder, at if self._at is None else self._at[at])


def select(rows: Sequence[T], at: np.ndarray) -> Sequence[T]:
    """The rows at these places: on disk where they are on disk."""
    taken: Sequence[T] = rows.take(at) if hasattr(rows, "take") else [rows[i] for i in at.tolist()]
    return taken


class Joined(Made[Pair]):
    """One sequence of pairs after the other."""

    def __init__(self, *parts: Sequence[Pair]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def made(self, place: int) -> Pair:
        for part in self.parts:
            if place < len(part):
                return part[place]
            place -= len(part)
        raise IndexError(place)

    def __iter__(self) -> Iterator[Pair]:
        return chain.from_iterable(self.parts)


class _Mapped:
    """The file. starts [batches + 1]: the first row of each batch, and the number of rows."""

    def __init__(self, mapped: mmap.mmap, starts: np.ndarray) -> None:
        import pyarrow

        self._map, self._starts = mapped, starts
        self._file = pyarrow.ipc.open_file(pyarrow.py_buffer(mapped))
        self._held, self._batch = 0, (-1, list[Any]())

    def __len__(self) -> int:
        return int(self._starts[-1])

    def row(self, place: int) -> Pair:
        batch = int(np.searchsorted(self._starts, place, side="right")) - 1
        if self._batch[0] != batch:
            self._batch = batch, self._file.get_batch(batch).columns
        columns = self._batch[1]
        at = place - int(self._starts[batch])
        made = _pair(*(column[at].as_py() for column in columns))
        self._let_go(1)
        return made

    def rows(self) -> Iterator[Pair]:
        for number in range(len(self._starts) - 1):
            columns = [column.to_pylist() for column in self._file.get_batch(number).columns]
            self._let_go(_HELD)
            yield from map(_pair, *columns)

    def _let_go(self, rows: int) -> None:
        self._held += rows
        if self._held >= _HELD and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)  # of a file's pages: they stay in the system's cache
            self._held = 0


def _write(rows: Iterable[list[str]], file: Any) -> np.ndarray:
    """→ [batches + 1] the first row of each batch, and the number of rows."""
    import pyarrow

    schema = pyarrow.schema([pyarrow.field(name, pyarrow.string()) for name in COLUMNS])
    starts, held, size = [0], list[list[str]](), 0
    with pyarrow.ipc.new_file(file, schema) as writer:

        def flush() -> None:
            writer.write_batch(pyarrow.record_batch([list(column) for column in zip(*held)], schema=schema))
            starts.append(starts[-1] + len(held))
            held.clear()

        for row in rows:
            held.append(row)
            size += sum(map(len, row))
            if len(held) == _ROWS or size > _BYTES:
                flush()
                size = 0
        if held:
            flush()
    return np.array(starts, np.int64)


def packed(pair: Pair) -> list[str]:
    """A pair as a row of the file: one string for each of `COLUMNS`, none of them empty."""
    rest = json.dumps([getattr(pair, each) for each in _REST])
    return [*map(_packed, (pair.prompt, pair.chosen, pair.rejected)), rest]


def _packed(text: Text) -> str:
    """JSON that gives the same text back: fields keep their order, for a template may write them in it."""
    tools, options = getattr(text, "tools", ()), getattr(text, "chat_template_kwargs", {})
    return json.dumps({"messages": text, "tools": tools, "options": options} if isinstance(text, Conversation) else text)


def _pair(prompt: str, chosen: str, rejected: str, rest: str) -> Pair:
    return Pair(_unpacked(prompt), _unpacked(chosen), _unpacked(rejected), *json.loads(rest))


def _unpacked(packed: str) -> Text:
    found = json.loads(packed)
    if isinstance(found, dict):
        return Conversation(found["messages"], tools=found["tools"], chat_template_kwargs=found["options"])
    return found if isinstance(found, str) else tuple(found)
