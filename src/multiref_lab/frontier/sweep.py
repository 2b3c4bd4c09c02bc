"""A sweep carried out: every cell trained on the bench of its task and measured, or read where it was finished before."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from multiref.training import quiet
from multiref_lab.demo import make
from multiref_lab.experiment import Experiment, Listener, Record, one_thread
from multiref_lab.frontier.generated import GeneratedBench
from multiref_lab.frontier.grid import Cell, cells
from multiref_lab.frontier.settings import FrontierSettings, Generated
from multiref_lab.frontier.stories import StoriesBench

Bench = GeneratedBench | StoriesBench  # a task with its models: trains and measures a cell; what it knows beside
_BENCHES: dict[str, Bench] = {}


@dataclass(frozen=True)
class Training:
    """Cell → its numbers. A bench is made once a process.

    cache: folder in which generated worlds are kept; None: the user's. shared: folder of models and data that the stories'
    paths are relative to.
    """

    settings: FrontierSettings
    cache: Path | None = None
    shared: Path | None = None

    def __call__(self, cell: Cell) -> dict[str, float]:
        quiet()
        return self.bench(cell.task).train(cell)

    def bench(self, task: str) -> Bench:
        """The bench of a task, also for what is computed rather than trained."""
        settings = self.settings.tasks[task]
        key = repr((settings, self.cache, self.shared))
        if key not in _BENCHES:
            if isinstance(settings, Generated):
                _BENCHES[key] = GeneratedBench(settings, self.cache)
            else:
                _BENCHES[key] = StoriesBench(settings, self.shared)
        return _BENCHES[key]


def sweep(training: Training, output: Path, told: Listener, *, workers: int = 2) -> tuple[Record[Cell, dict[str, float]], ...]:
    """Every cell's record, each from `output`/records where the same settings and code have left one.

    Errors: ArgumentError, ConfigError, OutputError.
    """
    quiet()
    settings = training.settings

    def given(cell: Cell) -> dict[str, object]:
        """What a cell's numbers depend on beside it: its task, less what the grid is made of and the other way of training."""
        other = "online" if cell.training == "offline" else "offline"
        own = dataclasses.asdict(settings.tasks[cell.task])
        return {key: value for key, value in own.items() if key not in ("betas", "pairs", other)}

    experiment = Experiment(output / "records", cells(settings), training, given=given)
    with one_thread():
        if settings.stories is not None and experiment.missing:
            training.bench("stories")  # whose models and data nobody makes: what lacks is said before anything is trained
        if settings.generated is not None and experiment.missing:
            told.phase("The world, made once: a base model and two specialists, each good at one kind of word problem.")
            make(training.cache, settings.generated.world, progress=told.progress)
        return tuple(experiment.run(told, workers=workers, what="runs").values())
