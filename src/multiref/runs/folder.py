"""The folder of a run: what is in it, written in one step each, and what a killed run left to go on from."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from multiref._files import write_whole
from multiref.errors import ConfigError, OutputError

__all__ = ["RunFolder"]


class RunFolder:
    """config.yaml, versions.json, metrics.jsonl, checkpoints/, scores/, and at the end model/ and report.html."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def finished(self) -> bool:
        """Whether the model is there: written last, in one step."""
        return (self.model / "config.json").exists() or (self.model / "adapter_config.json").exists()

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def claim(self, resolved: dict[str, Any]) -> bool:
        """Make the folder this run's own, or find that it is. True where an earlier call with the same settings began it.

        Raises: OutputError where it cannot be written; ConfigError where it belongs to a run with other settings, naming the first difference.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise OutputError(
                f"output: cannot write into {self.path}: {error.strerror or error}. Choose a folder that can be written (--set output=…)."
            ) from None
        if not self.config.exists():
            self.write("config.yaml", yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
            return False
        earlier = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        different = _difference(earlier, resolved)
        if different:
            key, was, now = different
            raise ConfigError(
                f"output: {self.path} holds a run with other settings: {key} was {was!r} and is now {now!r}. Choose another folder, or remove this one."
            )
        return True

    def write(self, name: str, text: str) -> Path:
        """A text file, whole or not at all."""
        return write_whole(self.path / name, text)

    def write_model(self, save: Callable[[Path], None]) -> None:
        """The model folder: written beside its place, then moved there."""
        for left in self.path.glob(".model.*"):
            shutil.rmtree(left, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(dir=self.path, prefix=".model."))
        os.chmod(temporary, 0o755)
        save(temporary)
        if self.model.exists():
            shutil.rmtree(self.model)
        os.replace(temporary, self.model)

    def last_checkpoint(self) -> Path | None:
        """The latest checkpoint that was written completely (its trainer state is written last); half-written ones are removed."""
        found = sorted(self.checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
        for path in found:
            if _complete(path):
                return path
            shutil.rmtree(path, ignore_errors=True)
        return None

    def keep_metrics_until(self, step: int) -> None:
        """Drop the lines after `step`: a resumed run writes them again."""
        if not self.metrics.exists():
            return
        kept = [line for line in self.read_metrics() if line.get("step", 0) <= step]
        self.write("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines so far; one that a kill cut short is left out."""
        lines = []
        if self.metrics.exists():
            for text in self.metrics.read_text(encoding="utf-8").splitlines():
                try:
                    lines.append(json.loads(text))
                except json.JSONDecodeError:
                    continue
        return lines

    def append_metrics(self, line: dict[str, Any]) -> None:
        """One line, flushed."""
        with self.metrics.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


def _complete(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return False
    return True


def _difference(was: Any, now: Any, path: str = "") -> tuple[str, Any, Any] | None:
    if isinstance(was, dict) and isinstance(now, dict):
        for key in [*was, *(key for key in now if key not in was)]:
            found = _difference(was.get(key), now.get(key), f"{path}.{key}" if path else str(key))
            if found:
                return found
        return None
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        return next((found for k, (a, b) in enumerate(zip(was, now)) if (found := _difference(a, b, f"{path}[{k}]"))), None)
    return None if was == now else (path, was, now)
