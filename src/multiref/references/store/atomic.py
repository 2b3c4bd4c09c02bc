"""A file of a store appears whole or not at all; what a killed process leaves behind (`TEMPORARY`) is removed by `multiref
store prune`."""

from pathlib import Path

from multiref._files import TEMPORARY, replace_whole
from multiref.errors import StoreError

__all__ = ["TEMPORARY", "write"]


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
    return (
        f"Cannot write {path}: {error.strerror or error}. Free some space, or choose a folder that can be written, and run the "
        "same command again. What was stored before is intact."
    )
