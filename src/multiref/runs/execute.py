"""One executor for every task: claim the folder, find a finished run, go on where a killed one stopped, train, write card,
page and model.

Under a launcher every process comes here. The folder belongs to the first: it alone claims, decides where to go on and writes.
"""

import json
import os
import time
from pathlib import Path

from multiref.report import versions
from multiref.runs.base import BaseRun, Say
from multiref.runs.folder import RunFolder
from multiref.runs.page import model_card, write_report


def execute(run: BaseRun, *, say: Say = print) -> Path:
    """Do the run; returns its folder.
    The same call again goes on where a killed one stopped; finished already: says so and does nothing."""
    main = int(os.environ.get("RANK", "0")) == 0
    folder = RunFolder(run.output, main=main)
    say = say if main else _nothing
    start = run.ready()
    began = folder.claim(run.plain()) if main else True
    if folder.finished:
        say(f"{folder.path} holds a finished run; nothing to do.")
        return folder.path
    folder.write("versions.json", json.dumps(versions(), indent=1))
    clock = _Clock()
    job = start(folder, say)
    clock.lap("preparation")
    (checkpoint,) = _agreed([folder.last_checkpoint() if began and main else None])
    if main:
        step = folder.keep_metrics_until(checkpoint)
        if checkpoint:
            say(f"Going on from step {step}.")
    job.train(checkpoint)
    clock.lap("training")
    facts, save = job.finish()
    clock.lap("evaluation and gathering")
    if main:
        timing = [*(folder.read("timing.json") or []), clock.seconds]
        folder.write("timing.json", json.dumps(timing, indent=1))
        lines = folder.read_metrics()
        write_report(folder.report, run, facts, lines, timing)

        def save_with_card(target: Path) -> None:
            save(target)
            (target / "README.md").write_text(model_card(run, facts, lines), encoding="utf-8")

        folder.write_model(save_with_card)
        say(f"Model: {folder.model}\nReport: {folder.report}")
    _agreed([None])  # nobody leaves before the model is there
    return folder.path


class _Clock:
    """Wall seconds of the parts of one call."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._last = round(now - self._last, 2), now


def _agreed(values: list[Path | None]) -> list[Path | None]:
    """The main process's values, on every process."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(values)
    return values


def _nothing(_: str) -> None:
    """What processes other than the main one say."""
