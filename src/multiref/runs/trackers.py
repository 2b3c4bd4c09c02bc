"""The lines of metrics.jsonl where people look: TensorBoard, and what else accelerate can write to, under the same names."""

import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from multiref.errors import ConfigError, MultirefWarning
from multiref.report.blocks import dotted

TrackerName = Literal["tensorboard", "wandb", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab", "trackio"]
Line = Mapping[str, Any]


def open_trackers(
    names: list[TrackerName], folder: Path, settings: dict[str, Any], *, after: int
) -> Callable[[Line], None] | None:
    """What takes the lines of a run, on the main process; None where none is asked for. Each tracker is accelerate's.

    TensorBoard's files are in `folder`/tensorboard; the others are told the folder's name.

    Args:
        after: the last step that was reported before, −1 at the start: what a killed run reported later is written again.
    """
    if not names:
        return None
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState(cpu=not torch.accelerator.is_available())  # which its trackers ask for; the job's, where it has one
    opened: dict[str, Any] = {}
    for name in dict.fromkeys(names):
        try:
            if name == "tensorboard":
                made = LOGGER_TYPE_TO_CLASS[name]("tensorboard", logging_dir=folder, purge_step=after + 1)
            else:
                made = LOGGER_TYPE_TO_CLASS[name](folder.resolve().name)
            made.main_process_only = False  # only the main process comes here
            if hasattr(made, "start"):
                made.start()
            if after < 0:
                plain = {
                    key: str(value) if value is None or isinstance(value, list) else value for key, value in dotted(settings)
                }
                made.store_init_configuration(plain)
        except Exception as error:  # each library has its own
            raise ConfigError(
                f"report_to: {name} could not be opened: {type(error).__name__}: {error}"
                ". Set it up as its own documentation says, or leave it out of report_to."
            ) from error
        opened[name] = made

    def report(line: Line) -> None:
        numbers = {key: value for key, value in line.items() if isinstance(value, int | float) and not isinstance(value, bool)}
        values = {key: float(value) for key, value in numbers.items() if key != "step" and not math.isinf(value)}
        for name, tracker in list(opened.items()):
            try:
                tracker.log(values, step=int(line.get("step", 0)))
            except Exception as error:
                del opened[name]
                warnings.warn(
                    f"report_to: {name} takes no more lines ({type(error).__name__}: {error}); training goes on.",
                    MultirefWarning,
                    stacklevel=2,
                )

    return report


def check_trackers(names: list[TrackerName]) -> None:
    """ConfigError for a tracker whose package is not installed."""
    if not names:
        return
    from accelerate.tracking import get_available_trackers

    there = {str(getattr(each, "value", each)) for each in get_available_trackers()}
    for name in names:
        if name not in there:
            package = {"comet_ml": "comet-ml"}.get(name, name)
            raise ConfigError(f"report_to: {name} is not installed; run `pip install {package}`, or leave it out.")
