"""The manifest: what the store holds, at a glance. It is derived from the shards and can be rebuilt from them at any time."""

import json
import re
from pathlib import Path
from typing import Any

from multiref._files import MIB, read_text
from multiref._json import parse_json
from multiref._sealed import is_sealed, seal
from multiref.errors import StoreError
from multiref.references.store import atomic, shards

NAME = "manifest.json"
_SHARD = re.compile(r"[\w.-]{1,200}/[\w-]{1,200}\.parquet")


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Shard (`<identity>/<file>`) → {"rows", "bytes"}, as last written; empty where there is none, or it has changed since."""
    try:
        found = parse_json(read_text(folder / NAME, "a manifest", largest=512 * MIB, error=StoreError), NAME, error=StoreError)
    except StoreError:
        return {}
    listed = found.get("shards") if is_sealed(found) else None
    if not isinstance(listed, dict):
        return {}
    return {name: entry for name, entry in listed.items() if _SHARD.fullmatch(name) and _is_entry(entry)}


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and entry.keys() == {"rows", "bytes"} and all(type(n) is int for n in entry.values())


def rebuild(folder: Path) -> dict[str, dict[str, Any]]:
    """Bring the manifest in line with the shards that are there, and return it. Known shards are not opened again.

    Two processes may do this at once: each writes a whole file, and what one of them misses the next one adds.
    """
    known = read(folder)
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((folder / "shards").glob("*/*.parquet")):
        name = f"{path.parent.name}/{path.name}"
        entry = known.get(name) or _describe(path)
        if entry is not None:
            found[name] = entry
    if found != known or not known:
        try:
            atomic.write(folder / NAME, (json.dumps(seal({"format": 1, "shards": found}), indent=0) + "\n").encode())
        except StoreError:
            if not found:
                # nothing there and nothing writable: say so; else the shards are the truth and this a convenience
                raise
    return found


def _describe(path: Path) -> dict[str, Any] | None:
    try:
        return dict(zip(("rows", "bytes"), shards.count_rows(path)))
    except StoreError:  # a damaged shard is `verify`'s business
        return None
