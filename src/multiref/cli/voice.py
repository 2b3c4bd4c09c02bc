"""One voice for every verb: `--json`, `--quiet`, `--verbose`, notes, and the line that says what to do next."""

import contextlib
import dataclasses
import functools
import inspect
import json
import math
import os
import shutil
import sys
import textwrap
import traceback
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from multiref._files import as_path
from multiref._progress import watched_by
from multiref.cli.bars import Bars
from multiref.errors import MultirefError, MultirefNotice, MultirefWarning
from multiref.report.shown import visible

_OPTIONS: dict[str, Any] = {
    "as_json": Annotated[bool, "--json", "The result as JSON, alone on standard output."],
    "quiet": Annotated[bool, "--quiet -q", "Say nothing but errors, warnings and the last line."],
    "verbose": Annotated[bool, "--verbose", "Where in the code an error came from; libraries' deprecations."],
}


@dataclasses.dataclass(frozen=True)
class Made:
    """What a parameter of a verb is made of: `Annotated[Selection, Made(selection)]` gives the verb the options of `selection`,
    a function, and hands it what that returns. without: parameters of the function that stay at their defaults."""

    function: Callable[..., Any]
    without: tuple[str, ...] = ()


def voiced(function: Callable[..., Any]) -> Callable[..., Any]:
    """A verb's function with the options of all verbs.

    What the function returns is its result: a mapping, whose `next` is the command to go on with, and `exit` the exit code.
    Under --json it is printed, alone, on standard output (`{"error": …}` for an error of ours); otherwise the last line is
    `Next: …`.
    """
    if hasattr(function, "voiced"):
        return function
    own = _options(function)
    added = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_option(hint))
             for name, hint in _OPTIONS.items()]  # fmt: skip

    @functools.wraps(function)
    def call(**values: Any) -> None:
        as_json, quiet, verbose = (bool(values.get(name)) for name in _OPTIONS)
        verb = function.__module__.rpartition(".")[2]
        result: Any = None
        try:
            with (
                _output(sys.stderr if as_json else None, quiet and not as_json),
                _bars(quiet, verb),
                _libraries(quiet, verbose),
            ):
                result = function(**_filled(function, {name: _at_home(value) for name, value in values.items()}))
        except MultirefError as error:
            if verbose:
                traceback.print_exception(error)
            if as_json:
                print(json.dumps({"error": str(error)}))
            raise
        found = dict(result) if isinstance(result, Mapping) else {}
        code = found.pop("exit", 0)
        if as_json:
            print(json.dumps(plain({"verb": verb, **found}), default=str))  # ASCII: half a character prints
        elif found.get("next"):
            print(f"Next: {visible(found['next'])}")
        if code:
            raise typer.Exit(code)

    every = [*own.values(), *added]
    call.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
    call.__annotations__ = {each.name: each.annotation for each in every}
    call.voiced = True  # type: ignore[attr-defined]
    return call


def _parts(function: Callable[..., Any]) -> Iterator[tuple[inspect.Parameter, Made | None]]:
    """A function's parameters, each with its hint, and with what it is made of."""
    parameters = inspect.signature(function).parameters
    annotated = types.SimpleNamespace(__annotations__={name: each.annotation for name, each in parameters.items()})
    hints = typing.get_type_hints(annotated, function.__globals__, include_extras=True)  # not of what it returns
    for name, each in parameters.items():
        made = next((part for part in getattr(hints[name], "__metadata__", ()) if isinstance(part, Made)), None)
        yield each.replace(annotation=_option(hints[name]), kind=inspect.Parameter.KEYWORD_ONLY), made


def _option(hint: Any) -> Any:
    """`Annotated[str, "--name -n", "what it is"]` → typer's option; without the first string it is named as its parameter."""
    words = [part for part in getattr(hint, "__metadata__", ()) if isinstance(part, str)]
    if not words:
        return hint
    *names, said = words
    return Annotated[hint.__origin__, typer.Option(*" ".join(names).split(), help=said)]


def _options(function: Callable[..., Any], without: tuple[str, ...] = ()) -> dict[str, inspect.Parameter]:
    """The options of a function, and of those that make its parameters."""
    found: dict[str, inspect.Parameter] = {}
    for each, made in _parts(function):
        if each.name not in without:
            found |= {each.name: each} if made is None else _options(made.function, made.without)
    return found


def _filled(function: Callable[..., Any], values: Mapping[str, Any], without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Its arguments: values of options, and what is made of them."""
    return {
        each.name: values[each.name] if made is None else made.function(**_filled(made.function, values, made.without))
        for each, made in _parts(function)
        if each.name not in without
    }


def _at_home(value: Any) -> Any:
    """A path, or each of several, with the home folder for `~`, which shells leave in `--out=~/x`."""
    if isinstance(value, list):
        return [_at_home(each) for each in value]
    return as_path(value) if isinstance(value, Path) else value


@contextlib.contextmanager
def _bars(quiet: bool, verb: str) -> Iterator[None]:
    """Long jobs are watched, and the verb as a whole; under a launcher those of the first process."""
    if quiet or os.environ.get("RANK", "0") != "0":
        yield
        return
    with Bars(verb) as bars, watched_by(bars):
        yield


@contextlib.contextmanager
def _libraries(quiet: bool, verbose: bool) -> Iterator[None]:
    """What libraries tell those who program with them (what will be renamed, say) is for --verbose, here and in workers; the
    hub's own bar of a download is for all but --quiet."""
    kinds = () if verbose else (FutureWarning, DeprecationWarning, PendingDeprecationWarning)
    given = [*filter(None, [os.environ.get("PYTHONWARNINGS")]), *(f"ignore::{kind.__name__}" for kind in kinds)]
    asked = {"PYTHONWARNINGS": ",".join(given), **({"HF_HUB_DISABLE_PROGRESS_BARS": "1"} if quiet else {})}
    before = {name: os.environ.get(name) for name in asked}
    os.environ.update(asked)
    try:
        with warnings.catch_warnings():
            for kind in kinds:
                warnings.simplefilter("ignore", kind)
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})


def say(text: object, stream: Any = None) -> None:
    """A line or more for people, broken between words where a terminal would break within one."""
    stream, lines = stream or sys.stdout, visible(text).split("\n")
    if stream.isatty():
        width = shutil.get_terminal_size().columns
        broken = (textwrap.wrap(line, width, break_on_hyphens=False, replace_whitespace=False) or [""] for line in lines)
        lines = [part for parts in broken for part in parts]
    print("\n".join(lines), file=stream, flush=True)


def plain(value: Any) -> Any:
    """JSON has no infinity: null instead."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def _output(instead: Any, quiet: bool) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if quiet:
            instead = stack.enter_context(open(os.devnull, "w", encoding="utf-8", errors="replace"))
        if instead is not None:
            stack.enter_context(contextlib.redirect_stdout(instead))
        yield


def show_notes() -> None:
    """From now on a warning is a line: ours without the place in our code that gave it, another library's with its name."""
    before = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], filename: str, *more: Any, **options: Any) -> None:
        if issubclass(category, MultirefWarning | MultirefNotice):
            say(f"{'Warning' if issubclass(category, MultirefWarning) else 'Note'}: {message}", sys.stderr)
        elif "site-packages" in (parts := Path(filename).parts):
            library = parts[parts.index("site-packages") + 1].removesuffix(".py")
            say(f"Warning of {library}: {' '.join(str(message).split())}", sys.stderr)
        else:
            before(message, category, filename, *more, **options)

    warnings.showwarning = show
