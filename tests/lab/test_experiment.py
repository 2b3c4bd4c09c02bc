"""The engine under every experiment: records that are found again or not, workers, errors, interrupts,
and a parent that is killed."""

import json
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from multiref.errors import ArgumentError, OutputError
from multiref_lab.experiment import Experiment, Record
from tests import forked


@dataclass(frozen=True)
class Cell:
    number: int

    @property
    def name(self) -> str:
        return f"cell{self.number}"


def square(cell: Cell) -> dict[str, int]:
    if cell.number < 0:
        raise ArgumentError(f"number: found {cell.number}, expected at least 0")
    if cell.number == 13:
        os._exit(1)
    return {"square": cell.number**2, "process": os.getpid()}


class Told:
    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.steps: list[tuple[str, int, int]] = []

    def phase(self, sentence: str) -> None:
        self.sentences.append(sentence)

    def progress(self, what: str, done: int, of: int) -> None:
        self.steps.append((what, done, of))


def test_what_is_there_is_not_measured_again(tmp_path):
    cells = [Cell(2), Cell(3), Cell(2), Cell(4)]
    first, told = Experiment(tmp_path, cells[:2], square).run(), Told()
    experiment = Experiment(tmp_path, cells, square)
    assert experiment.missing == [Cell(4)]
    again = experiment.run(told, what="runs")
    assert list(again) == [Cell(2), Cell(3), Cell(4)] and again[Cell(2)] == first[Cell(2)]
    assert told.steps == [("runs", 2, 3), ("runs", 3, 3)]
    assert told.sentences == ["3 runs, 2 of them finished before; 1 at a time."]
    half = experiment.path(Cell(3))
    half.write_text(half.read_text()[:20])
    assert experiment.missing == [Cell(3)]
    assert not list(tmp_path.glob(".*"))


def test_a_records_name_moves_with_all_that_its_numbers_depend_on(tmp_path, monkeypatch):
    base = Experiment(tmp_path, [Cell(2)], square)
    names = {base.path(Cell(2)), base.path(Cell(3))}
    names.add(Experiment(tmp_path, [Cell(2)], square, given=lambda cell: {"scale": cell.number}).path(Cell(2)))
    monkeypatch.setattr("multiref_lab.experiment.fingerprint", lambda module: "other code")
    names.add(base.path(Cell(2)))
    assert len(names) == 4 and all(name.name.startswith("cell") for name in names)


@pytest.fixture(params=["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def processes(request, monkeypatch):
    """How workers begin: as the library has them, and as copies of this process, which are there at once."""
    context = multiprocessing.get_context(request.param)
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: context)


def test_workers_measure_what_one_process_measures(processes, tmp_path):
    cells = [Cell(n) for n in range(5)]
    told = Told()
    found = Experiment(tmp_path, cells, square).run(told, workers=2)
    assert [found[cell].found["square"] for cell in cells] == [0, 1, 4, 9, 16]
    assert os.getpid() not in {record.found["process"] for record in found.values()}
    assert [step[1] for step in told.steps] == [0, 1, 2, 3, 4, 5]
    assert Experiment(tmp_path, cells, square).run() == found  # as read from disk


def test_an_error_in_a_cell_stops_the_sweep_and_what_is_finished_is_kept(processes, tmp_path):
    experiment = Experiment(tmp_path, [Cell(1), Cell(2), Cell(-1), *(Cell(n) for n in range(20, 40))], square)
    for workers in (1, 2):
        with pytest.raises(ArgumentError, match="number: found -1"):
            experiment.run(workers=workers)
        assert experiment.record(Cell(1)) is not None and experiment.missing
    with pytest.raises(OutputError, match="a worker ended in the middle of a cell"):
        Experiment(tmp_path, [Cell(13), Cell(14), Cell(15)], square).run(workers=2)
    with pytest.raises(ArgumentError, match="workers: expected at least 1"):
        experiment.run(workers=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        Experiment(tmp_path / "file", [Cell(1)], square).run()


@dataclass(frozen=True)
class Sleep:
    folder: Path

    def __call__(self, cell: Cell) -> dict[str, int]:
        (self.folder / f"{os.getpid()}.started").write_text("")
        time.sleep(0.05 if cell.number == 0 else 600)
        return {}


def sleep_together(folder: Path) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        Experiment(folder / "records", [Cell(n) for n in range(4)], Sleep(folder)).run(workers=2)
    except KeyboardInterrupt:
        sys.exit(130)


@pytest.fixture
def sweep(tmp_path):
    """A sweep of cells that sleep, in a process group of its own, once both workers are in a cell that takes long;
    and its workers."""
    with forked.ended(forked.start(sleep_together, tmp_path, said=tmp_path / "said", alone=False)) as process:
        wait_for(lambda: len(list(tmp_path.glob("*.started"))) == 2 and list((tmp_path / "records").glob("cell0-*.json")))
        yield process, [int(path.stem) for path in tmp_path.glob("*.started")]


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


def gone(workers: list[int]) -> bool:
    """Whether none of these processes runs (a zombie that nobody collects has ended too)."""
    states = [Path(f"/proc/{worker}/stat") for worker in workers]
    return all(not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z" for state in states)


def test_an_interrupt_ends_parent_and_workers_without_a_word(processes, sweep, tmp_path):
    """Ctrl-C reaches the whole group: the parent waits for no cell, and no worker prints a traceback."""
    process, workers = sweep
    os.killpg(process.pid, signal.SIGINT)
    process.join(20)
    assert process.exitcode == 130 and (tmp_path / "said").read_text() == ""
    wait_for(lambda: gone(workers), 5)


def test_workers_end_with_a_parent_that_is_killed(processes, sweep):
    process, workers = sweep
    process.kill()
    process.join(5)
    wait_for(lambda: gone(workers), 10)


def test_a_record_is_plain(tmp_path):
    experiment = Experiment(tmp_path, [Cell(3)], square)
    (record,) = experiment.run().values()
    kept = json.loads(experiment.path(Cell(3)).read_text())
    assert Record(Cell(**kept["cell"]), kept["found"], kept["seconds"]) == record
