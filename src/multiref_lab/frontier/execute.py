"""A sweep carried out: finished cells are read, the others are trained in worker processes, one thread each."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Protocol

from multiref.errors import ArgumentError, OutputError
from multiref_lab.demo.world import make
from multiref_lab.experiment import one_thread
from multiref_lab.frontier.findings import Findings
from multiref_lab.frontier.grid import Cell, cells
from multiref_lab.frontier.records import Record, kept, place
from multiref_lab.frontier.settings import FrontierSettings, Generated, Task
from multiref_lab.frontier.work import finish

__all__ = ["Listener", "run"]


class Listener(Protocol):
    """Told what happens, in sentences and in steps."""

    def phase(self, sentence: str) -> None: ...

    def progress(self, what: str, done: int, of: int) -> None: ...


def run(
    settings: FrontierSettings,
    output: Path,
    told: Listener,
    *,
    cache: Path | None = None,
    shared: Path | None = None,
    workers: int = 2,
) -> Findings:
    """Every cell of `settings`, each from its record in `output`/records where the same settings and code have left one.

    Args:
        cache: folder in which generated worlds are kept; None: the user's.
        shared: folder of models and data that the stories' paths are relative to.
        workers: processes, one thread each; 1 runs in this one.

    Errors: ArgumentError, ConfigError, OutputError; an error in a cell stops the sweep, and what is finished is kept.
    """
    if workers < 1:
        raise ArgumentError(f"workers: expected at least 1, found {workers}.")
    records = output / "records"
    try:
        records.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot write to the output folder {output}: {error.strerror or error}; choose another with --output"
        ) from None
    with one_thread():
        for task in settings.tasks.values():
            if isinstance(task, Generated):
                told.phase("Making the world, once: a base model and two specialists, each good at one kind of word problem.")
                make(cache, task.world, progress=told.progress)
        every = cells(settings)
        found = {
            cell: record
            for cell in every
            if (record := kept(place(records, settings.tasks[cell.task], cell), cell)) is not None
        }
        missing = [cell for cell in every if cell not in found]
        told.phase(f"{len(every)} runs, {len(found)} of them finished before; {min(workers, max(1, len(missing)))} at a time.")
        places = (records, cache, shared)
        for done, record in enumerate(_finished(settings.tasks, missing, places, workers), len(found) + 1):
            found[record.cell] = record
            told.progress("runs", done, len(every))
    return Findings(settings, tuple(found[cell] for cell in every), cache, shared)


def _finished(
    tasks: dict[str, Task], missing: Sequence[Cell], places: tuple[Path, Path | None, Path | None], workers: int
) -> Iterator[Record]:
    """Records as they come."""
    if workers == 1 or len(missing) < 2:
        for cell in missing:
            yield finish(tasks[cell.task], cell, places)
        return
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        waiting: set[Future[Record]] = {pool.submit(finish, tasks[cell.task], cell, places) for cell in missing}
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
