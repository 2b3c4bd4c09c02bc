"""Arrays that are on disk where they are large: one file without a name, mapped into memory, whose pages can be let go."""

import mmap
import os
import tempfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from multiref._files import MIB
from multiref.errors import OutputError

HELD = 64 * MIB  # bytes that are no file
_ALIGNED = 16


def unnamed_file(folder: Path, size: int = 0) -> IO[bytes]:
    """A file of so many bytes that is gone once it is closed, however the process ends: in this folder; where nothing can be
    written there, in the system's for temporary files. OutputError where there is no room."""
    error: OSError | None = None
    for place in (folder, None):
        try:
            file = tempfile.TemporaryFile(dir=place)  # noqa: SIM115
            if hasattr(os, "posix_fallocate") and size:  # a mapped file that finds no room ends the process
                os.posix_fallocate(file.fileno(), 0, size)
            file.truncate(size)
            return file
        except OSError as wrong:
            error = error or wrong
    raise OutputError(f"cannot hold scores on disk in {folder}: {error}. Free some space.") from error


class Mapped:
    """Arrays by name, of zeros to begin with: (shape, dtype) each."""

    def __init__(self, folder: Path, kinds: Mapping[str, tuple[tuple[int, ...], Any]]) -> None:
        sizes = {what: prod(shape) * np.dtype(kind).itemsize for what, (shape, kind) in kinds.items()}
        room = {what: -(-size // _ALIGNED) * _ALIGNED for what, size in sizes.items()}
        total, start = max(1, sum(room.values())), 0
        if total <= HELD:
            self._map = mmap.mmap(-1, total)
        else:
            with unnamed_file(folder, total) as file:
                self._map = mmap.mmap(file.fileno(), total)
        self._on_disk = total > HELD
        self.arrays: dict[str, np.ndarray] = {}
        for what, (shape, kind) in kinds.items():
            self.arrays[what] = np.frombuffer(self._map, kind, prod(shape), start).reshape(shape)
            start += room[what]

    def __reduce__(self) -> Any:
        return Mapped, (Path(), {})  # who copies the arrays, or sends them to a process, has them in memory

    def let_go(self) -> None:
        """Of what was read and written, that it counts as memory of this process; the system keeps it as long as it likes."""
        if self._on_disk and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def kept(self, what: str, there: np.ndarray) -> np.ndarray:
        """One array [..., N], less the columns that are not there [N] bool: the others move up."""
        array, step = self.arrays[what], 2**16
        if there.all():
            return array
        for row in array.reshape(-1, len(there)):
            at = 0
            for start in range(0, len(there), step):
                moved = row[start : start + step][there[start : start + step]]
                row[at : at + len(moved)] = moved
                at += len(moved)
            self.let_go()
        return array[..., :at]
