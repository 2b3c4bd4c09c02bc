"""A file appears whole or not at all."""

import contextlib
import os
import uuid
from pathlib import Path

from multiref.errors import OutputError

TEMPORARY = ".part"  # what a killed process may leave behind; never read


def write_whole(path: str | os.PathLike[str], content: bytes | str) -> Path:
    """Write to `path`, its folder too, so that a reader sees the old file or the new one.
    OutputError where it cannot be written."""
    target = Path(path)
    try:
        return replace_whole(target, content)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}; choose a folder that can be written") from error


def replace_whole(path: Path, content: bytes | str) -> Path:
    """The same with the system's own error: a temporary file in the same folder, flushed, renamed, the rename flushed too."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)
    return path


def _flush_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system lets a folder be flushed."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
