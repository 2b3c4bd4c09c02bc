"""The manifest: what the store holds, at a glance. It is derived from the shards and can be rebuilt from them at any time."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from multiref.errors import StoreError
from multiref.references.store import atomic

NAME = "manifest.json"


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Shard (`<identity>/<file>`) → {"rows", "bytes"}, as last written; empty if there is none or it cannot be read."""
    try:
        shards: dict[str, dict[str, Any]] = json.loads((folder / NAME).read_text())["shards"]
        return shards
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def rebuild(folder: Path) -> dict[str, dict[str, Any]]:
    """Bring the manifest in line with the shards that are there, and return it. Known shards are not opened again.

    Two processes may do this at once: each writes a whole file, and what one of them misses the next one adds.
    """
    known = read(folder)
    shards: dict[str, dict[str, Any]] = {}
    for path in sorted((folder / "shards").glob("*/*.parquet")):
        name = f"{path.parent.name}/{path.name}"
        entry = known.get(name) or _describe(path)
        if entry is not None:
            shards[name] = entry
    if shards != known:
        try:
            atomic.write(folder / NAME, (json.dumps({"format": 1, "shards": shards}, indent=0) + "\n").encode())
        except StoreError:
            if not shards:
                # nothing there and nothing writable: say so; else the shards are the truth and this a convenience
                raise
    return shards


def _describe(path: Path) -> dict[str, Any] | None:
    try:
        return {"rows": pq.read_metadata(path).num_rows, "bytes": path.stat().st_size}
    except (OSError, ValueError):  # pyarrow's own errors derive from these; a damaged shard is `verify`'s business
        return None
