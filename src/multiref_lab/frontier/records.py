"""Records: what a finished cell left, one small JSON file each, written whole or not at all, found again under the same settings and code."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multiref._files import write_whole
from multiref_lab.fingerprint import dependencies
from multiref_lab.frontier.grid import Cell
from multiref_lab.frontier.settings import Task

__all__ = ["Record", "keep", "kept", "place"]


@dataclass(frozen=True)
class Record:
    """The numbers of one cell, and the processor seconds that it took."""

    cell: Cell
    numbers: dict[str, float]
    seconds: float


def place(folder: Path, task: Task, cell: Cell) -> Path:
    """Where the record of a cell belongs: its name holds a digest of all that the numbers depend on."""
    own = {key: value for key, value in dataclasses.asdict(task).items() if key not in ("betas", "pairs")}
    own.pop("online" if cell.training == "offline" else "offline", None)
    parts = [json.dumps([own, dataclasses.asdict(cell)], sort_keys=True), _code()]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    return folder / f"{cell.task}-{cell.training}-{cell.rule}-{cell.alpha:g}-seed{cell.seed}-{digest}.json"


def kept(path: Path, cell: Cell) -> Record | None:
    """A finished record; None where there is none or it cannot be read (the cell is run again)."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        record = Record(
            Cell(**found["cell"]), {key: float(value) for key, value in found["numbers"].items()}, float(found["seconds"])
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return record if record.cell == cell else None


def keep(path: Path, record: Record) -> None:
    """Write it in one step. OutputError where that cannot be done."""
    write_whole(path, json.dumps(dataclasses.asdict(record), indent=1) + "\n")


@functools.cache
def _code() -> str:
    """Digest of every source file that a cell's numbers pass through, and of the versions below."""
    found = hashlib.sha256()
    for file in sorted(dependencies("multiref_lab.frontier.work")):
        found.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    for name in ("torch", "transformers", "accelerate"):
        found.update(importlib.metadata.version(name).encode() + b"\0")
    return found.hexdigest()
