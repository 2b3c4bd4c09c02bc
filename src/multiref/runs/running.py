"""What every run of a `transformers.Trainer` does around its own part: claim the folder, find a finished run, go on where a killed one stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from multiref.runs.folder import RunFolder

__all__ = ["carry_out"]

Say = Callable[[str], None]


def carry_out(
    path: str | Path,
    settings: dict[str, Any],
    arguments: Any,
    *,
    prepare: Callable[[RunFolder, Say], tuple[Any, Any]],
    finish: Callable[[RunFolder, Any, Any, Say], None],
    say: Say,
) -> Path:
    """Do the run in its folder and return that. Finished already: says so and does nothing.

    Args:
        settings: resolved, as the folder keeps them. arguments: `TrainingArguments`.
        prepare: (folder, say) → (trainer, what `finish` needs to know). finish: (folder, trainer, that, say), after training.
    """
    from multiref.report import versions

    folder, main = RunFolder(path), arguments.process_index == 0
    say = say if main else _nothing
    began = folder.claim(settings) if main else True
    if folder.finished:
        say(f"{folder.path} holds a finished run; nothing to do.")
        return folder.path
    if main:
        folder.write("versions.json", json.dumps(versions(), indent=1))
    trainer, facts = prepare(folder, say)
    checkpoint = folder.last_checkpoint() if began else None
    step = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    if checkpoint:
        say(f"Going on from step {step}.")
    if main:
        folder.keep_metrics_until(step)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finish(folder, trainer, facts, say)
    return folder.path


def _nothing(_: str) -> None:
    """What processes other than the main one say."""
