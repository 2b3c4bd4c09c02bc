"""One engine for every experiment of the laboratory: a grid of cells → one record a cell, kept on disk → findings → page.

    @dataclass(frozen=True)
    class Cell:                                  # what a record stands for: a frozen dataclass with a `name`
        ...

    # a function of a module, or a frozen dataclass with `__call__`; its result is kept as JSON
    def measure(cell: Cell) -> dict[str, float]:
        ...

    experiment = Experiment(folder / "records", cells, measure)
    records = experiment.run(told, workers=2)    # {cell: Record}, in the order of the cells

A record's file is called after its cell and after a digest of all that its numbers depend on:
the cell, `given(cell)`, every source file that `measure` reaches, and the versions below.
So what is there is never measured again, and what is out of date is never read. An interrupted sweep goes on where it was.
Workers are spawned processes of one thread each; they leave interrupts to their parent and end when it does, however it ends.
An error in a cell stops the sweep; what is finished is kept.

Who wants to be told what happens is a `Listener`:
`cli/narrator.py` on a terminal.
"""

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar, cast

import torch

from multiref.errors import ArgumentError, OutputError
from multiref.report import is_sealed, seal, versions, write_alone, write_whole
from multiref_lab.fingerprint import fingerprint
from multiref_lab.workers import begin, interrupts_wait

VERSIONS = ("torch", "transformers", "accelerate")


class Cell(Protocol):
    """A frozen dataclass of plain values; `name` is short, readable, and may stand in a file's name."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str: ...


C = TypeVar("C", bound=Cell)
F = TypeVar("F")


class Listener(Protocol):
    """Told what happens, in sentences and in steps."""

    def phase(self, sentence: str) -> None: ...

    def progress(self, what: str, done: int, of: int) -> None: ...


@dataclass(frozen=True)
class Record(Generic[C, F]):
    """What a finished cell left, and the processor seconds that it took."""

    cell: C
    found: F
    seconds: float


class Experiment(Generic[C, F]):
    """Cells, each measured once.

    Args:
        folder: where the records go, one JSON file each.
        cells: equal ones are one.
        measure: cell → plain values (what JSON holds).
        given: cell → plain values that its numbers depend on beside itself (settings of its task, where its data come from).
    """

    def __init__(
        self,
        folder: str | Path,
        cells: Sequence[C],
        measure: Callable[[C], F],
        *,
        given: Callable[[C], Mapping[str, object]] = lambda cell: {},
    ) -> None:
        self.folder, self.cells, self.measure, self.given = Path(folder), list(dict.fromkeys(cells)), measure, given

    def run(self, told: Listener | None = None, *, workers: int = 1, what: str = "cells") -> dict[C, Record[C, F]]:
        """Every cell's record, from disk or measured now; `told.progress(what, …)` before the first and after each.

        Errors: ArgumentError; OutputError where the folder cannot be written or a worker is lost; whatever `measure` raises.
        """
        found: dict[C, Record[C, F]] = {}

        def keep(record: Record[C, F]) -> None:
            found[record.cell] = record
            if told is not None:
                told.progress(what, len(found), len(self.cells))

        with write_alone(self.folder):
            found |= {cell: record for cell in self.cells if (record := self.record(cell)) is not None}
            missing = [cell for cell in self.cells if cell not in found]
            if told is not None:
                most = min(workers, max(1, len(missing)))
                told.phase(f"{len(self.cells)} {what}, {len(found)} of them finished before; {most} at a time.")
                told.progress(what, len(found), len(self.cells))
            _in_workers(self.measure, {cell: self.path(cell) for cell in missing}, keep, workers)
        return {cell: found[cell] for cell in self.cells}

    def path(self, cell: C) -> Path:
        """Where a cell's record belongs."""
        return self.folder / f"{cell.name}-{digest([dataclasses.asdict(cell), self.given(cell)], self.measure.__module__)}.json"

    def record(self, cell: C) -> Record[C, F] | None:
        """A finished record; None where there is none, or not as it was written (the cell is measured again)."""
        kept = read_kept(self.path(cell))
        return None if kept is None else Record(cell, cast(F, kept["found"]), float(kept["seconds"]))

    @property
    def missing(self) -> list[C]:
        """Cells without a record."""
        return [cell for cell in self.cells if self.record(cell) is None]


def _in_workers(
    measure: Callable[[C], F], places: Mapping[C, Path], tell: Callable[[Record[C, F]], None], workers: int
) -> None:
    """Measure every cell, `workers` at a time, and hand each record to `tell` as it comes, when it is on disk.

    With one worker, or one cell, this process measures; then `measure` need not be picklable.
    At an error or an interrupt the workers are ended.
    """
    if workers < 1:
        raise ArgumentError(f"workers: expected at least 1, found {workers}.")
    if workers == 1 or len(places) < 2:
        for cell, place in places.items():
            tell(_finish(measure, cell, place))
        return
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=begin)
    try:
        with interrupts_wait():
            waiting = [pool.submit(_finish, measure, cell, place) for cell, place in places.items()]
        for future in as_completed(waiting):
            tell(future.result())
    except BaseException as error:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        if isinstance(error, BrokenProcessPool):
            time.sleep(0.2)  # a signal to all of them may have ended it: then ours arrives now, and is what is said
            raise OutputError(
                "a worker ended in the middle of a cell (killed, or out of memory); what is finished is kept: run again, "
                "with fewer workers"
            ) from None
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _finish(measure: Callable[[C], F], cell: C, place: Path) -> Record[C, F]:
    with one_thread():
        began = time.process_time()
        record = Record(cell, measure(cell), round(time.process_time() - began, 2))
    write_kept(place, {"cell": dataclasses.asdict(cell), "found": record.found, "seconds": record.seconds})
    return record


def write_kept(place: Path, value: Mapping[str, Any]) -> None:
    """JSON with its sum."""
    write_whole(place, json.dumps(seal(value), indent=1) + "\n")


def read_kept(place: Path) -> dict[str, Any] | None:
    """What `write_kept` wrote; None where there is nothing, or not as it was written."""
    try:
        kept = json.loads(place.read_text(encoding="utf-8"))
        return {key: kept[key] for key in kept if key != "sum"} if is_sealed(kept) else None
    except (OSError, ValueError, RecursionError):
        return None


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread of torch inside: our arrays and models are too small to share, a busy machine does not stall them,
    sums come in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def digest(values: object, module: str) -> str:
    """Sixteen hexadecimal digits of plain values, of every source file that a module reaches, and of the versions below
    them."""
    parts = [json.dumps(values, sort_keys=True, default=str), fingerprint(module), *map(versions().__getitem__, VERSIONS)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
