"""The folder of a run: what is in it, written in one step each, and what a killed run left to go on from."""

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import yaml

from multiref._files import MIB, as_path, open_file, read_text
from multiref._json import parse_json
from multiref._locks import Lock, write_alone
from multiref.errors import ConfigError, ModelError, OutputError
from multiref.report import write_whole
from multiref.report.blocks import dotted
from multiref.runs.yaml_values import PlainLoader
from multiref.training.sums import newest_whole, set_aside, step_of

T = TypeVar("T", list[Any], dict[str, Any])


class RunFolder:
    """config.yaml, versions.json, models.json, timing.json, metrics.jsonl, checkpoints/, and at the end model/ and report.html.
    One process writes it, `main`, while it holds the lock (`claimed`); the others may read."""

    def __init__(self, path: str | Path, *, main: bool = True) -> None:
        self.path, self.main = as_path(path), main
        self.config, self.metrics, self.report = (self.path / name for name in ("config.yaml", "metrics.jsonl", "report.html"))
        self.checkpoints, self.model = self.path / "checkpoints", self.path / "model"
        self._lock: Lock | None = None
        self._report: Callable[[dict[str, Any]], None] | None = None
        self._reported = -1

    def report_to(self, report: Callable[[dict[str, Any]], None] | None, *, after: int) -> None:
        """Hands every further line of metrics on, those of steps after this one where all of them are written anew."""
        self._report, self._reported = report, after

    @property
    def finished(self) -> bool:
        """Whether the model is there: written last, in one step."""
        return (self.model / "config.json").exists() or (self.model / "adapter_config.json").exists()

    @contextmanager
    def claimed(self, resolved: dict[str, Any], *, take_over: bool = False) -> Iterator[bool]:
        """Make the folder this run's own, or find that it is, and keep other processes from writing it meanwhile.
        True where an earlier call with the same settings began it.

        Args:
            take_over: whether another process that writes it is told to stop, rather than this one.

        Raises: OutputError where it cannot be written, or another process is writing it; ConfigError where it belongs to a run
        with other settings, naming the first difference, or to one of multiref 0.1.
        """
        with write_alone(self.path, take_over=take_over) as self._lock:
            began = True  # by another run, if that is what it says
            try:
                began = self._begun(resolved)
                yield began
            except BaseException:  # also of a person who saw a mistake in the first line
                if not began and {path.name for path in self.path.iterdir()} <= {"config.yaml", "versions.json", ".lock"}:
                    with suppress(OutputError):  # another process took it over
                        self.check()
                        self.config.unlink()  # the run never began: other settings may have the folder
                raise
            finally:
                self._lock = None

    def _begun(self, resolved: dict[str, Any]) -> bool:
        if not self.config.exists():
            self.write("config.yaml", yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
            return False
        skipped = dict.fromkeys(("check_saved", "report_to", "push_to_hub"))  # who looks at it makes no other run
        different = difference(self.settings() | skipped, resolved | skipped)
        if different:
            key, was, now = different
            raise ConfigError(
                f"output: {self.path} holds a run with other settings: {key} was {was!r} and is now {now!r}. "
                "Choose another folder, or remove this one."
            )
        return True

    def settings(self) -> dict[str, Any]:
        """What config.yaml holds. ConfigError for what is no run's folder of this version."""
        try:
            text = read_text(self.config, "config.yaml of `multiref train`", largest=MIB, error=ConfigError)
            found = yaml.load(text, PlainLoader)
        except (ValueError, yaml.YAMLError):  # ConfigError is a ValueError
            raise ConfigError(f"{self.path}: no run; expected config.yaml of `multiref train`.") from None
        if not isinstance(found, dict) or "format" not in found:
            raise ConfigError(
                f"{self.path} is a run folder of multiref 0.1, which this version does not go on with; choose another folder."
            )
        return found

    def write(self, name: str, text: str) -> None:
        """A text file, whole or not at all."""
        if self.main:
            self.check()
            write_whole(self.path / name, text)

    def read(self, name: str, kind: type[T]) -> T:
        """What a JSON file holds, a list or a dictionary of them; an empty one where it is not there."""
        path, again = self.path / name, "Remove it; it is made again."
        if not os.path.lexists(path):
            return kind()
        text = read_text(path, "a file that this run wrote", error=OutputError)
        found = parse_json(text, str(path), error=OutputError, constants=True, expected=again)
        inside = list(found.values()) if isinstance(found, dict) else found
        if not isinstance(found, kind) or not all(isinstance(part, dict) for part in inside):
            raise OutputError(f"{path} is not as this run writes it. {again}")
        return found

    def write_model(self, save: Callable[[Path], None]) -> None:
        """The model folder: written beside its place, then moved there. What `save` refuses, by a ModelError, is kept as
        model.refused."""
        for left in self.path.glob(".model.*"):
            shutil.rmtree(left, ignore_errors=True)
        self.check()
        temporary = self.path / f".model.{os.getpid()}"
        temporary.mkdir()
        try:
            save(temporary)
        except ModelError:
            shutil.rmtree(self.path / "model.refused", ignore_errors=True)
            os.replace(temporary, self.path / "model.refused")
            raise
        if self.model.exists():
            shutil.rmtree(self.model)
        os.replace(temporary, self.model)

    def last_checkpoint(self, say: Callable[[str], None]) -> Path | None:
        """The newest checkpoint that is whole by its sums. Newer ones are put aside, and it is said why."""
        found, bad = newest_whole(self.checkpoints)
        for path, problem in bad.items():
            say(f"{path.name} is not used: {problem}.")
        set_aside(bad)
        return found

    def keep_metrics_until(self, checkpoint: Path | None) -> int:
        """The checkpoint's step; lines of metrics after it are dropped, for a resumed run writes them again. So are those from
        the end of training on, which have the last checkpoint's step and come after it."""
        step = step_of(checkpoint) if checkpoint else 0
        if self.metrics.exists():
            before = itertools.takewhile(lambda line: "train_runtime" not in line, self.read_metrics())
            self.write_metrics([line for line in before if line.get("step", 0) <= step])
        return step

    def write_metrics(self, lines: list[dict[str, Any]]) -> None:
        """All lines anew, whole or not at all; trackers get those that they have not seen."""
        self.write("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        for line in lines:
            if line.get("step", 0) > self._reported:
                self._hand_on(line)

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines so far; one that a kill cut short is left out."""
        lines: list[dict[str, Any]] = []
        if not os.path.lexists(self.metrics):
            return lines
        with open_file(self.metrics, "the lines of a run", largest=2**33, error=OutputError) as file:
            content = file.read()
        for text in content.split(b"\n"):
            with suppress(ValueError, RecursionError):
                if isinstance(line := json.loads(text), dict):
                    lines.append(line)
        return lines

    def append_metrics(self, line: dict[str, Any]) -> None:
        """One line, flushed."""
        if self.main:
            self.check()
            with self.metrics.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
            self._hand_on(line)

    def _hand_on(self, line: dict[str, Any]) -> None:
        if self._report is not None:
            self._report(line)
            self._reported = max(self._reported, int(line.get("step", 0)))

    def check(self) -> None:
        """OutputError where another process has taken the folder over."""
        if self._lock is not None:
            self._lock.check()


def difference(was: dict[str, Any], now: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """The first key whose value is another one, with both; None where there is none."""
    before, after = dict(dotted(was)), dict(dotted(now))
    different = (key for key in before | after if before.get(key) != after.get(key))
    return next(((key, before.get(key), after.get(key)) for key in different), None)
