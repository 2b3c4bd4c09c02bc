"""One voice for every verb: `--json`, `--quiet`, `--verbose`, notes, and the line that says what to do next."""

import contextlib
import functools
import inspect
import io
import json
import math
import sys
import traceback
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import typer

from multiref._progress import watched_by
from multiref.cli.bars import Bars
from multiref.errors import MultirefError, MultirefNotice, MultirefWarning
from multiref.report.shown import visible

_OPTIONS: dict[str, Any] = {
    "as_json": Annotated[
        bool, typer.Option("--json", help="The result as JSON on standard output, all else on standard error.")
    ],
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors, warnings and the last line.")],
    "verbose": Annotated[bool, typer.Option("--verbose", help="Of an error show where it came from, too.")],
}


def voiced(function: Callable[..., Any]) -> Callable[..., Any]:
    """A verb's function with the options of all verbs.

    What the function returns is its result: a mapping, whose `next` is the command to go on with. Under --json it is printed,
    alone, on standard output (`{"error": …}` for an error of ours); otherwise the last line is `Next: …`.
    """
    if hasattr(function, "voiced"):
        return function
    signature, hints = inspect.signature(function), typing.get_type_hints(function, include_extras=True)
    own = signature.parameters
    added = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=False, annotation=hint)
             for name, hint in _OPTIONS.items() if name not in own]  # fmt: skip

    @functools.wraps(function)
    def call(**values: Any) -> None:
        as_json, quiet, verbose = (bool(values.get(name)) for name in _OPTIONS)
        mine = {name: value for name, value in values.items() if name in own}
        speaks_json = as_json and "as_json" not in own
        result: Any = None
        try:
            with _output(sys.stderr if speaks_json else None, quiet and not as_json), _bars(function, quiet):
                result = function(**mine)
        except MultirefError as error:
            if verbose:
                traceback.print_exception(error)
            if as_json:
                print(json.dumps({"error": str(error)}, ensure_ascii=False))
            raise
        found: Mapping[str, Any] = result if isinstance(result, Mapping) else {}
        if speaks_json:
            print(json.dumps(plain({"verb": function.__module__.rpartition(".")[2], **found}), ensure_ascii=False, default=str))
        elif found.get("next") and not as_json:
            print(f"Next: {visible(found['next'])}")

    kept = [each.replace(annotation=hints.get(name, each.annotation)) for name, each in own.items()]
    call.__signature__ = signature.replace(parameters=[*kept, *added])  # type: ignore[attr-defined]
    call.__annotations__ = {**hints, **{each.name: each.annotation for each in added}}
    call.voiced = True  # type: ignore[attr-defined]
    return call


@contextlib.contextmanager
def _bars(function: Callable[..., Any], quiet: bool) -> Iterator[None]:
    """Long jobs are watched, but those of a verb that draws bars of its own."""
    if quiet or not function.__module__.startswith("multiref.cli.") or function.__module__ == "multiref.cli.score":
        yield
        return
    with Bars() as bars, watched_by(bars):
        yield


def is_quiet() -> bool:
    """Whether people are told nothing: for what draws on standard error."""
    return isinstance(sys.stdout, _Nothing)


def plain(value: Any) -> Any:
    """JSON has no infinity: null instead."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Nothing(io.TextIOBase):
    """Where what nobody is to see goes."""

    def write(self, text: str) -> int:
        return len(text)


@contextlib.contextmanager
def _output(instead: Any, quiet: bool) -> Iterator[None]:
    if quiet:
        with _Nothing() as nothing, contextlib.redirect_stdout(nothing):
            yield
    elif instead is not None:
        with contextlib.redirect_stdout(instead):
            yield
    else:
        yield


def show_notes() -> None:
    """From now on our warnings are a line, without the place in our code that gave them."""
    before = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *more: Any, **options: Any) -> None:
        if issubclass(category, MultirefWarning | MultirefNotice):
            print(f"{'Warning' if issubclass(category, MultirefWarning) else 'Note'}: {visible(message)}", file=sys.stderr)
        else:
            before(message, category, *more, **options)

    warnings.showwarning = show
