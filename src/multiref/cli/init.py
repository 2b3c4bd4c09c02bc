"""`multiref init`: write a run file: asks, or takes --task, --model, --reference, --data."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multiref._progress import rest
from multiref.cli.options import REWARDS, ChosenColumns, Out, by_name
from multiref.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from multiref.runs.new import Task


def command(
    *,
    file: Annotated[Path, typer.Argument(help="The file to write.")] = Path("run.yaml"),
    task: Annotated[str | None, "preference, reward, online, distill or iterative. Default preference."] = None,
    model: Annotated[str | None, "--model -m", "What is trained: a folder or a hub id."] = None,
    reference: Annotated[
        list[str] | None, "--reference -r", "name=PATH: a reference that the policy is held to. Once per reference."
    ] = None,
    data: Annotated[str | None, "--data -d", "Pairs, or prompts: a file, a folder, a URL, a hub id."] = None,
    chosen: ChosenColumns,
    reward: Annotated[
        list[str] | None, "--reward", f"For online: gsm8k, {REWARDS}. For iterative: lexicon=FILE or model=FOLDER."
    ] = None,
    store: Annotated[str | None, "--store -s", "Where `multiref score` put the references' scores."] = None,
    beta: Annotated[float | None, "The strength: how much the references count. Default 0.1."] = None,
    output: Annotated[str | None, Out, "The run's folder. Default runs/ and the file's name."] = None,
    force: Annotated[bool, "--force", "Write over a file that is there."] = False,
) -> dict[str, Any]:
    """Write a run file, with comments, valid, and its schema for editors beside it. What is not given is asked for, where there
    is a terminal.

    Example: multiref init --model ./base --reference base=./base --reference math=./math --data pairs.jsonl
    """
    from multiref.report import write_whole
    from multiref.runs import schema
    from multiref.runs.new import SCHEMA, WITH_PAIRS, new_run

    if os.path.lexists(file) and not force:
        raise OutputError(f"{file} is there already; choose another name, or --force to write over it.")
    kind = _task(task)
    model = model or _ask("Model to train (a folder or a hub id)")
    references = by_name("--reference", reference)
    while not references and kind != "reward":
        references = by_name("--reference", _ask("References, as name=PATH, spaces between", f"base={model}").split())
    data = data or _ask("Preference pairs" if kind in WITH_PAIRS else "Prompts")
    source = {"path": data} | {key: value for key in ("name", "split", "columns") if (value := getattr(chosen, key))}
    paid, where = _rewards(kind, reward), output or f"runs/{file.stem}"
    text = new_run(kind, model=model, references=references, data=source, reward=paid, beta=beta, output=where, store=store)
    write_whole(file, text)
    write_whole(file.parent / SCHEMA, json.dumps(schema(), indent=1, ensure_ascii=False) + "\n")
    print(f"Wrote {file} and {file.parent / SCHEMA}.")
    return {"file": str(file), "task": kind, "next": f"multiref train --config {shlex.quote(str(file))} --dry-run"}


def _task(given: str | None) -> "Task":
    from multiref.runs.new import TASKS

    kind = next((each for each in TASKS if each == (given or _ask("Task", "preference"))), None)
    if kind is None:
        raise ConfigError(f"--task {given}: expected one of {', '.join(TASKS)}.")
    return kind


def _rewards(kind: str, given: list[str] | None) -> list[dict[str, Any]]:
    from multiref.runs.rewards import read_rewards

    if kind in ("online", "iterative") and not given:
        given = [_ask("Reward, such as lexicon=FILE or model=FOLDER")]
    own = {"sha256"}  # which the run's own record has
    return [each.model_dump(include={"kind", *each.given()} - own) for each in read_rewards(given or [], answers=True)]


def _ask(question: str, default: str | None = None) -> str:
    if not sys.stdin.isatty():
        if default is not None and question == "Task":
            return default
        raise ConfigError(f"{question}: not given, and there is no terminal to ask at; see multiref init --help.")
    rest()
    return str(typer.prompt(question, default=default, err=True))
