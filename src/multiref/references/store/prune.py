"""Removing what a store no longer needs: leftovers of killed processes, damaged shards, references nobody uses any more."""

import contextlib
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from multiref.errors import StoreError
from multiref.references.store import atomic
from multiref.references.store.folder import Store

STALE = 600.0  # seconds: a temporary file younger than this may belong to a process that is writing it


def prunable(store: Store, *, references: Sequence[str] = ()) -> dict[Path, str]:
    """File → why it can go. Always: stale temporary files, damaged shards and what was set aside;
    and every file of `references` (names, or beginnings of addresses), what names them last: who is killed can ask again."""
    gone: dict[Path, str] = {}
    last: dict[Path, str] = {}
    for path in store.folder.rglob(f".*{atomic.TEMPORARY}"):
        if time.time() - path.lstat().st_mtime > STALE:
            gone[path] = "left by a process that was ended"
    for path in (store.folder / "damaged").glob("*"):
        gone[path] = "damaged, set aside"
    store.manifest()  # which who was killed here did not bring in line
    for name in references:
        address = store.named(name)
        last[store.folder / "references" / f"{address}.json"] = f"of reference {name}"
        for path in [*store.shards(address), store.folder / "audits" / f"{address}.json"]:
            if path.exists():
                gone[path] = f"of reference {name}"
    for damage in store.verify():
        if damage.path.exists():
            gone.setdefault(damage.path, "damaged")
    return {path: why for path, why in gone.items() if path not in last} | {p: why for p, why in last.items() if p.exists()}


def remove(store: Store, files: Sequence[Path]) -> None:
    """Delete these files and bring the manifest in line."""
    for path in files:
        try:
            if path.is_dir() and not path.is_symlink():  # something put it there, and it was set aside
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(
                f"Cannot remove {path}: {error.strerror or error}. What was removed before it stays removed."
            ) from error
    for folder in (store.folder / "shards").glob("*/"):
        with contextlib.suppress(OSError):  # it is not empty, or a link
            folder.rmdir()
    store.manifest()
