"""What a worker does: the bench of a task, made once a process; a cell trained and measured."""

from __future__ import annotations

import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from multiref.training.arguments import quiet
from multiref_lab.frontier.generated import GeneratedBench
from multiref_lab.frontier.grid import Cell
from multiref_lab.frontier.records import Record, keep, place
from multiref_lab.frontier.settings import Generated, Task
from multiref_lab.frontier.stories import StoriesBench

__all__ = ["bench_of", "finish"]


def finish(task: Task, cell: Cell, places: tuple[Path, Path | None, Path | None]) -> Record:
    """Train and measure one cell, on one thread, and write its record. places: folder of records, cache of worlds, folder of models and data."""
    torch.set_num_threads(1)
    quiet()
    bench = bench_of(task, places[1], places[2])
    began = time.process_time()
    record = Record(cell, bench.train(cell), time.process_time() - began)
    keep(place(places[0], task, cell), record)
    return record


def bench_of(task: Task, cache: Path | None, shared: Path | None) -> Any:
    """The bench of a task; the last one is kept."""
    return _bench(_Key(task), cache, shared)


class _Key:
    """A task as a key: equal where the settings are equal."""

    def __init__(self, task: Task) -> None:
        self.task, self.text = task, repr(task)

    def __hash__(self) -> int:
        return hash(self.text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and other.text == self.text


@lru_cache(maxsize=2)
def _bench(key: _Key, cache: Path | None, shared: Path | None) -> Any:
    task = key.task
    return GeneratedBench(task, cache) if isinstance(task, Generated) else StoriesBench(task, shared)
