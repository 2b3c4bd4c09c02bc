"""A file of a store appears whole or not at all; what a killed process leaves behind (`TEMPORARY`) is removed by `multiref
store prune`."""

import errno
from pathlib import Path

from multiref._files import TEMPORARY, replace_whole
from multiref.errors import StoreError

__all__ = ["TEMPORARY", "write"]

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
    try:
        replace_whole(path, content)
    except OSError as error:
        raise StoreError(unwritable(path, error)) from error


def unwritable(path: Path, error: OSError) -> str:
    """One sentence: what could not be written, why, and what to do."""
    why = _WHY.get(error.errno or 0, f"{error.strerror or error}. Check the disk and the folder")
    return f"Cannot write {path}: {why}, then run the same command again. What was stored before is intact."
