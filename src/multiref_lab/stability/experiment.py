"""A folder of records, one JSON file per finished cell: what is there is not measured again, so a killed run goes on where it stopped."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from multiref._files import write_whole
from multiref_lab.stability.grid import Axis, Cell, unique
from multiref_lab.stability.linear_cell import Given

__all__ = ["Experiment", "Record"]

_EDITION = 1  # of what a cell measures; records of another edition are measured again


@dataclasses.dataclass(frozen=True)
class Record:
    """A finished cell: its settings, the seconds of one process that it took, and {method/K: {measure: one number a seed}}."""

    settings: dict[str, Any]
    seconds: float
    measured: dict[str, dict[str, list[float]]]


class Experiment:
    """Cells of some axes in a folder.

    Args:
        folder: where `cells/<name>.json` go.
        given: what the world `features` stands on, and in words where it comes from (part of a record's identity).
    """

    def __init__(self, folder: str | Path, axes: Sequence[Axis], *, given: Given | None = None, source: str = "") -> None:
        self.folder, self.axes, self.given, self.source = Path(folder), list(axes), given, source
        self.cells = unique(self.axes)

    def run(self, *, watch: Callable[[Cell, bool], None] = lambda cell, done: None) -> None:
        """Measure what is missing. `watch(cell, done)` is told before a cell is measured, and after.

        Raises:
            OutputError: a record cannot be written.
        """
        for cell in self.cells:
            if self.record(cell) is None:
                watch(cell, False)
                began = time.perf_counter()
                measured = cell.measure(self.given)
                self._write(cell, Record(self._settings(cell), round(time.perf_counter() - began, 2), measured))
            watch(cell, True)

    def record(self, cell: Cell) -> Record | None:
        """The record of a cell, None where there is none of these very settings (or only half of one)."""
        try:
            found = json.loads(self._path(cell).read_text(encoding="utf-8"))
            record = Record(**found)
        except (OSError, ValueError, TypeError):
            return None
        return record if record.settings == self._settings(cell) else None

    @property
    def missing(self) -> list[Cell]:
        """Cells without a record."""
        return [cell for cell in self.cells if self.record(cell) is None]

    def _settings(self, cell: Cell) -> dict[str, Any]:
        source = {"source": self.source} if cell.world == "features" else {}
        return {"edition": _EDITION, "world": cell.world, **dataclasses.asdict(cell.settings), **source}

    def _path(self, cell: Cell) -> Path:
        return self.folder / "cells" / f"{cell.name}.json"

    def _write(self, cell: Cell, record: Record) -> None:
        write_whole(self._path(cell), json.dumps(dataclasses.asdict(record), indent=0) + "\n")
