"""Arrays that are on disk where they are large: files without names, mapped into memory, whose pages can be let go."""

import mmap
import os
import tempfile
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from multiref._files import MIB
from multiref.errors import OutputError

HELD = 16 * MIB  # bytes of an array that is in memory


def unnamed_file(folder: Path, size: int = 0) -> IO[bytes]:
    """A file of so many bytes that is gone once it is closed, however the process ends: in this folder; where nothing can be
    written there, in the system's for temporary files. OutputError where there is no room."""
    try:
        file = tempfile.TemporaryFile(dir=folder if os.access(folder, os.W_OK) else None)  # noqa: SIM115
        if hasattr(os, "posix_fallocate") and size:  # a mapped file that finds no room ends the process
            os.posix_fallocate(file.fileno(), 0, size)
        return file
    except OSError as error:
        raise OutputError(f"cannot hold scores on disk in {folder}: {error}. Free some space.") from error


def zeros(folder: Path, shape: tuple[int, ...], kind: Any) -> np.ndarray:
    """An array of zeros."""
    size = prod(shape) * np.dtype(kind).itemsize
    if size <= HELD:
        return np.zeros(shape, kind)
    with unnamed_file(folder, size) as file:
        return np.memmap(file, kind, "r+", shape=shape)


def let_go(arrays: Iterable[np.ndarray]) -> None:
    """Of what was read and written, that it counts as memory of this process; the system keeps it as long as it likes."""
    for array in arrays:
        if hasattr(mmap, "MADV_DONTNEED") and (mapped := getattr(array, "_mmap", None)) is not None:
            mapped.madvise(mmap.MADV_DONTNEED)
