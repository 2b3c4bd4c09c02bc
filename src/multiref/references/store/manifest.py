"""The manifest: what the store holds, at a glance. It is derived from the shards and can be rebuilt from them at any time."""

import json
import re
from contextlib import suppress
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
    sound = [name for name, entry in listed.items() if isinstance(entry, dict) and entry.keys() == {"rows", "bytes"}]
    return {n: listed[n] for n in sound if _SHARD.fullmatch(n) and all(type(each) is int for each in listed[n].values())}


def rebuild(folder: Path) -> dict[str, dict[str, Any]]:
    """Bring the manifest in line with the shards that are there, and return it. Known shards are not opened again.

    Two processes may do this at once: each writes a whole file, and what one of them misses the next one adds.
    """
    known = read(folder)
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((folder / "shards").glob("*/*.parquet")):
        name = f"{path.parent.name}/{path.name}"
        with suppress(StoreError):  # a damaged shard is `verify`'s business
            found[name] = known.get(name) or shards.describe(path)
    if found != known or not known:
        try:
            atomic.write(folder / NAME, (json.dumps(seal({"format": 1, "shards": found}), indent=0) + "\n").encode())
        except StoreError:
            if not found:
                # nothing there and nothing writable: say so; else the shards are the truth and this a convenience
                raise
    return found
