"""The one type of all runs, told apart by `task`; a run from a file, and the schema with which an editor completes it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, TypeAdapter

from multiref.runs.base import BaseRun, Say
from multiref.runs.distill import DistillRun
from multiref.runs.document import Document
from multiref.runs.execute import execute
from multiref.runs.iterative import IterativeRun
from multiref.runs.online import OnlineRun
from multiref.runs.preference import PreferenceRun
from multiref.runs.reward import RewardRun
from multiref.runs.strict import ReadAs, union
from multiref.training.arguments import quiet

TASKS: dict[str, type[BaseRun]] = {
    "preference": PreferenceRun,
    "reward": RewardRun,
    "online": OnlineRun,
    "distill": DistillRun,
    "iterative": IterativeRun,
}


def _with_task(values: Any) -> Any:
    return {"task": "preference", **values} if isinstance(values, dict) else values


_TASK = union("task", TASKS.values(), renamed={"labels": "iterative"})
Run = Annotated[BaseRun, ReadAs(_TASK), BeforeValidator(_with_task)]


def run(path: str | Path, set: Iterable[str] = (), *, say: Say = print, take_over: bool = False) -> Path:
    """Do what a run's file says, or go on with it; returns the run's folder.

        mr.run("recipe.yaml", set=["beta=0.2", "output=runs/b"])

    Args:
        path: a YAML file, such as those in recipes/. set: `key=value` laid over it. say: told what happens, line by line.
        take_over: where another process is doing the run, it stops at its next line, and this one goes on.

    Raises: ConfigError naming file and line for what cannot be meant; DataError, ModelError, OutputError for what cannot be
    read or written.
    """
    quiet()
    return execute(read_run(path, set), say=say, take_over=take_over)


def read_run(path: str | Path, set: Iterable[str] = ()) -> BaseRun:
    """The run that a file describes, checked. ConfigError names file and line of the first mistake, or the `--set`."""
    return Document.read(path).set(set).validate(Run)  # type: ignore[type-abstract]


def schema() -> dict[str, Any]:
    """The JSON schema of a run's file."""
    adapter: TypeAdapter[BaseRun] = TypeAdapter(Run)
    found = adapter.json_schema()
    found |= found.pop("anyOf")[-1]  # less the bare text, which no file is
    found["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return found
