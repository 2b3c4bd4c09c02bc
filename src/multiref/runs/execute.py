"""One executor for every task: claim the folder, find a finished run, go on where a killed one stopped, train, write the model,
see whether it is what was trained, write card and page.

Under a launcher every process comes here. The folder belongs to the first: it alone claims, decides where to go on and writes.
"""

import errno
import gc
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from multiref.errors import ConfigError, ModelError, MultirefError, OutputError
from multiref.models import ModelSpec
from multiref.references.identity import file_identity
from multiref.report import versions
from multiref.runs.base import BaseRun, Facts, Job, Say
from multiref.runs.folder import RunFolder, difference
from multiref.runs.page import model_card, write_report
from multiref.runs.trackers import check_trackers, open_trackers
from multiref.runs.waiting import main_first
from multiref.training.saved import Kept

T = TypeVar("T")
_MODELS = "models.json"  # what each model was when training began
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def execute(run: BaseRun, *, say: Say = print, take_over: bool = False) -> Path:
    """Do the run; returns its folder.
    The same call again goes on where a killed one stopped; finished already: says so and does nothing.
    take_over: from a process that is doing it."""
    main = int(os.environ.get("RANK", "0")) == 0
    folder, tell = RunFolder(run.output, main=main), say if main else lambda _: None
    check_trackers(run.report_to)
    if run.push_to_hub is not None:
        run.push_to_hub.key()
    start = run.ready()
    with _claimed(folder, run.plain(), take_over) as began:
        if folder.finished:
            tell(f"{folder.path} holds a finished run; nothing to do.")
        else:
            try:
                _carry_out(run, folder, start, began, tell)
            except Exception as error:
                if (why := _disk(error)) is None or isinstance(error, MultirefError):
                    raise
                raise OutputError(
                    f"cannot write {folder.path}: {why}. What is finished is kept; run again to go on."
                ) from error
        if main:
            _push(run, folder, say)
    return folder.path


def _push(run: BaseRun, folder: RunFolder, say: Say) -> None:
    """Model and card to the hub that the run names, once: hub.json remembers it."""
    if (to := run.push_to_hub) is None:
        return
    asked = {"repo": to.repo, "endpoint": to.endpoint}
    done = folder.read("hub.json", list)
    if not any(asked.items() <= each.items() for each in done):
        found = to.push(folder.model, run.title or f"{run.task} run of multiref")
        folder.write("hub.json", json.dumps([*done, found], indent=1))
        say(f"Pushed to {found['url']}")


def _disk(error: Exception) -> str | None:
    """What the system says of the disk, where that is what an error of whoever writes comes from; else None."""
    if isinstance(error, OSError):
        return error.strerror if error.errno in _DISK else None
    said = str(error)  # of safetensors and torch, which have errors of their own
    return next((os.strerror(code) for code in _DISK if f"os error {code}" in said or os.strerror(code) in said), None) or (
        "the disk took no more" if "PytorchStreamWriter failed writing" in said else None
    )


@contextmanager
def _claimed(folder: RunFolder, settings: dict[str, Any], take_over: bool) -> Iterator[bool]:
    """The folder in the hands of the main process, which tells the others whether it is."""
    with ExitStack() as held:
        began, problem = True, None
        if folder.main:
            try:
                began = held.enter_context(folder.claimed(settings, take_over=take_over))
                _check_models(folder, settings)
            except MultirefError as error:
                problem = error
        (refused,) = _agreed([problem is not None])
        if problem is not None:
            raise problem
        if refused:
            raise OutputError("The main process could not claim the folder; its own message says why.")
        (began,) = _agreed([began])
        yield began


def _carry_out(run: BaseRun, folder: RunFolder, start: Callable[[RunFolder, Say], Job], began: bool, say: Say) -> None:
    """Train, on from where it stopped; write the model, the card and the page."""
    main, named = folder.main, named_models(run.plain())
    trusted = sorted({spec.path for spec in named.values() if spec.trust_remote_code})
    folder.write("versions.json", json.dumps({**versions(), **({"trust_remote_code": trusted} if trusted else {})}, indent=1))
    clock = _Clock()
    torch.manual_seed(run.first_seed)  # new weights are the run's, whatever this process did before
    job = start(folder, say)
    if main:  # now that all of them could be loaded
        folder.write(_MODELS, json.dumps({name: file_identity(spec) for name, spec in named.items()}, indent=1))
    clock.lap("preparation")
    (checkpoint,) = _agreed([folder.last_checkpoint(say) if began and main else None])
    if main:
        step = folder.keep_metrics_until(checkpoint)
        if checkpoint:
            say(f"Going on from step {step}.")
        last = max((int(line.get("step", 0)) for line in folder.read_metrics()), default=-1)
        folder.report_to(open_trackers(run.report_to, folder.path, run.plain(), after=last), after=last)
    job.train(checkpoint)
    clock.lap("training")
    facts, save = job.finish()
    kept = job.remember() if run.check_saved else None
    clock.lap("evaluation and gathering")
    with main_first(str(folder.path.resolve()), others_first=True):  # nobody leaves before the model is there
        if main:

            def save_and_check(target: Path) -> None:
                save(target)
                _check(run, job, kept, target, facts)
                clock.lap("saving and checking")
                (target / "README.md").write_text(model_card(run, facts, folder.read_metrics()), encoding="utf-8")
                timing = [*folder.read("timing.json", list), clock.seconds]
                folder.write("timing.json", json.dumps(timing, indent=1))
                write_report(folder.report, run, facts, folder.read_metrics(), timing)

            folder.write_model(save_and_check)  # last: where it is, everything is
            say(f"Model: {folder.model}\nReport: {folder.report}")
        else:
            job.release()


def named_models(settings: Any) -> dict[str, ModelSpec]:
    """Every model that a run's settings name (policy, references, rewards, judges), by its path and adapter."""
    found: dict[str, ModelSpec] = {}
    if isinstance(settings, dict):
        if "trust_remote_code" in settings or settings.get("kind") in ("model", "reward_model"):
            spec = ModelSpec(settings["path"]) if "kind" in settings else ModelSpec(**settings)
            found[" + ".join(filter(None, (spec.path, spec.adapter)))] = spec
        settings = list(settings.values())
    for each in settings if isinstance(settings, list) else ():
        found |= named_models(each)
    return found


def _check_models(folder: RunFolder, settings: dict[str, Any]) -> None:
    """ConfigError where a model that the settings name is no more what it was when training began."""
    known = folder.read(_MODELS, dict)
    for name, spec in named_models(settings).items() if known and not folder.finished else ():
        if (changed := difference(known.get(name, {}), file_identity(spec))) is not None:
            raise ConfigError(
                f"output: {folder.path} holds a run that began with another {name} ({changed[0]}). Put that one back, choose "
                "another folder, or remove this one."
            )


def _check(run: BaseRun, job: Job, kept: Kept | None, target: Path, facts: Facts) -> None:
    """Frees what was trained, loads what was saved, and writes down what was found. ModelError where they differ."""
    job.release()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if kept is None:
        facts.checks.append("The saved model was not compared with the trained one (check_saved: false).")
        return
    try:
        facts.checks.append(kept.compare(replace(run.model, path=str(target.resolve()), adapter=None, revision=None)))
    except ModelError as error:
        raise ModelError(
            f"{error} The folder is kept as model.refused and the checkpoints stay; run again to save from the last one, or "
            "with check_saved: false to take it as it is."
        ) from error


class _Clock:
    """Wall seconds of the parts of one call."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._last = round(now - self._last, 2), now


def _agreed(values: list[T]) -> list[T]:
    """The main process's values, on every process."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState
        from accelerate.utils import broadcast_object_list

        PartialState(cpu=not torch.accelerator.is_available())  # the first to ask begins the group; else each is alone
        broadcast_object_list(values)
    return values
