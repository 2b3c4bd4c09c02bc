"""A file appears whole or not at all."""

import contextlib
import errno
import os
import uuid
from pathlib import Path

from multiref.errors import StoreError

__all__ = ["TEMPORARY", "write"]

TEMPORARY = ".part"  # what a killed process may leave behind; never read, removed by `multiref store prune`

_WHY = {
    errno.ENOSPC: "the disk is full. Free some space",
    errno.EDQUOT: "the disk quota is used up. Free some space",
    errno.EFBIG: "the file would exceed the size this system allows. Use smaller shards (shard_size)",
    errno.EROFS: "the file system is read-only. Choose a writable folder, or copy the store to one",
    errno.EACCES: "permission is denied. Choose a writable folder, or copy the store to one",
    errno.EPERM: "permission is denied. Choose a writable folder, or copy the store to one",
    errno.ENOTDIR: "a part of this path is a file, not a folder. Choose another folder",
    errno.EEXIST: "a part of this path is a file, not a folder. Choose another folder",
}


def write(path: Path, content: bytes) -> None:
    """Write `content` to `path`: temporary file in the same folder, flushed to the disk, then renamed.

    Raises `StoreError` when that cannot be done (disk full, read-only, no permission); the store is then as it was before.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StoreError(unwritable(path, error)) from error
    _flush_folder(path.parent)


def unwritable(path: Path, error: OSError) -> str:
    """One sentence: what could not be written, why, and what to do."""
    why = _WHY.get(error.errno or 0, f"{error.strerror or error}. Check the disk and the folder")
    return f"Cannot write {path}: {why}, then run the same command again. What was stored before is intact."


def _flush_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system lets a folder be flushed."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
