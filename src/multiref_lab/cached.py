"""Folders that are made once: in the user's cache, whole or not at all."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from multiref.errors import OutputError


def cache_folder(kind: str) -> Path:
    """Where folders of a kind are kept, if nobody says where."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "multiref" / kind


@contextlib.contextmanager
def made_beside(folder: Path, *, room: int = 0) -> Iterator[Path]:
    """A temporary folder that becomes `folder` when the block ends well, in one step; where another process was faster, its
    folder stays. OutputError where it cannot be written, or fewer than `room` bytes are free."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(folder.parent).free) < room:
            raise OutputError(
                f"{folder} takes {room / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there; choose another place."
            )
        for left in folder.parent.glob(f".{folder.name}.????????"):  # by a process that was killed; nobody makes one so long
            if time.time() - left.stat().st_mtime > 3600:
                shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.", ignore_cleanup_errors=True) as name:
            yield Path(name) / "new"
            if not (folder.is_dir() and any(folder.iterdir())):
                os.replace(Path(name) / "new", folder)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}; choose another place.") from error
