"""The command line: one verb a file, `cli/<verb>.py`, with a function `command(...)` (or a typer `app` where a verb has verbs).

A verb's file is imported only when that verb is asked for, so `multiref --help` answers at once;
what is heavy is imported inside the verb. A `MultirefError` becomes one message on stderr and exit code 2, without a traceback.
Anything else is a bug of ours and keeps its traceback.
"""

import ast
import atexit
import errno
import importlib
import importlib.util
import io
import os
import signal
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from multiref._progress import tell
from multiref.cli.help import group_help, verb_help, verbs_help
from multiref.cli.voice import show_notes, voiced
from multiref.errors import MultirefError
from multiref.report.shown import visible

__all__ = ["app", "main", "tell"]  # tell: for other packages' verbs, how far they are

# Each is a file of the same name beside this one; `help.GROUPS` says under which heading it stands. What follows the colon in
# the first line of its docstring is what `multiref --help` says. Other packages add verbs by an entry point of the group
# `multiref.verbs`: verb = module. Nobody can take the name of a verb of ours, or keep the others from being listed.
VERBS = [
    *("init", "doctor", "data", "score", "store", "inspect"),
    *("train", "sweep", "decode", "serve", "evaluate", "bound", "solve"),
]


class Verbs(TyperGroup):
    """A group that knows its verbs by name and imports one only when it is invoked."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.homes = {entry.name: entry.module for entry in entry_points(group="multiref.verbs")}
        self.homes |= {verb: f"{__name__}.{verb}" for verb in VERBS}
        for verb in (*VERBS, *sorted(self.homes.keys() - set(VERBS))):
            self.commands[verb] = _stand_in(verb, _first_line(self.homes[verb]))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, load(name, self.homes[name]) if command is not None and name is not None else command, rest

    def format_help(self, ctx: Any, formatter: Any) -> None:
        lines = {verb: (command.help or "").strip() for verb, command in self.commands.items()}
        own = [("--version", "Print the version and stop."), ("-h, --help", "Show this and stop.")]
        shell = [("--install-completion", "Complete verbs and options in this shell."), ("--show-completion", "Print how.")]
        formatter.write(verbs_help(lines, "multiref VERB …", root.__doc__ or "", [*own, *shell]))

    def invoke(self, ctx: Any) -> Any:
        """The verb. A signal ends it in one line, whatever a library made of it; so does a `MultirefError`."""
        try:
            return super().invoke(ctx)
        except typer.Exit:
            raise
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, KeyboardInterrupt):
                raise typer.Exit(_said(error, ctx.invoked_subcommand)) from None
            if _heard:
                raise typer.Exit(_said(_heard[0](), ctx.invoked_subcommand)) from None
            if not isinstance(error, MultirefError):
                raise
            print(f"Error: {visible(error)}", file=sys.stderr)
            raise typer.Exit(2) from None


class Ended(KeyboardInterrupt):
    """SIGTERM: somebody asks this process to end."""


_heard: list[type[KeyboardInterrupt]] = []  # signals; compiled code that calls Python may make another error of one


def _end(number: int, _: object) -> None:
    _heard.append(Ended if number == signal.SIGTERM else KeyboardInterrupt)
    raise _heard[-1]


def _ignore_signals() -> None:
    """All is done and no thread runs any more: the interpreter is only taken down, and would end by a signal's default."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _said(stop: KeyboardInterrupt, verb: str | None = None) -> int:
    """One line, and the exit code by which shells know the signal."""
    told, code = ("Ended", 143) if isinstance(stop, Ended) else ("Interrupted", 130)
    print(f"{told}. {_PARTING.get(verb or '', _KEPT)}", file=sys.stderr)
    return code


_KEPT = "What was already stored is kept; run the same command again to go on."
_PARTING = {
    "serve": "Serving is over: nothing listens at its port any more. It stored nothing.",
    **dict.fromkeys(
        ("bound", "data", "decode", "doctor", "inspect", "solve", "sweep"),
        "Nothing was stored; the same command starts again from the beginning.",
    ),
}


def _stand_in(verb: str, line: str) -> Any:
    """A command with the verb's name and help line: enough for the listing, and for a suggestion after a typing error."""
    stub = typer.Typer(add_completion=False)
    stub.command(verb, help=line)(lambda: None)
    return typer.main.get_command(stub)


def _first_line(home: str) -> str:
    """What a module's docstring begins with, read from its source: `--help` imports no verb,
    and survives one that is broken."""
    try:
        spec = importlib.util.find_spec(home)  # imports the packages around it, which may be anyone's
        source = Path(str(spec and spec.origin)).read_text(encoding="utf-8")
        line = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0].partition(": ")[2]
    except Exception as error:
        return f"(cannot be loaded from {home}: {type(error).__name__})"
    return line[:1].upper() + line[1:]


def load(verb: str, home: str) -> Any:
    """The command of one verb, from its module: the typer `app` if it has one, else its function `command`."""
    try:
        module = importlib.import_module(home)
    except ImportError as error:
        if verb in VERBS:
            raise
        raise MultirefError(
            f"{verb}: {home} cannot be imported ({error}); mend or remove the package that brings it"
        ) from error
    verb_app = getattr(module, "app", None)
    if verb_app is None:
        verb_app = typer.Typer(add_completion=False)
        verb_app.command(verb)(module.command)
    for registered in verb_app.registered_commands:
        registered.callback = registered.callback and voiced(registered.callback)
    command = typer.main.get_command(verb_app)
    command.name = verb
    _plain_help(command, f"multiref {verb}")
    return command


def _plain_help(command: Any, name: str) -> None:
    """Text without markup, boxes and colours, for the command and those under it."""
    command.rich_markup_mode = None
    below = getattr(command, "commands", None)
    show = group_help if below else verb_help
    command.format_help = lambda ctx, formatter: formatter.write(show(command, name))
    for each in (below or {}).values():
        _plain_help(each, f"{name} {each.name}")


_LIBRARIES = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}  # our lines, not every library's; workers too
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
_BUG = "This is a bug of multiref. Please report it with what stands below. What was stored is kept; the same command goes on."

app = typer.Typer(
    cls=Verbs,
    name="multiref",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"multiref {version('multiref')}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Align a language model against several reference models at once, under an objective one can check."""


def main() -> None:
    """Entry point of the `multiref` command. What the terminal's encoding does not have is shown escaped, not refused;
    who reads our output and stops (`| head`) ends us without a word. Under a launcher a rank may be waiting for others, where
    Python hears no signal: there SIGTERM ends it as it does any process."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        atexit.register(_ignore_signals)
        signal.signal(signal.SIGTERM, _end)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, as behind a shell's &
            signal.signal(signal.SIGINT, _end)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for name, value in _LIBRARIES.items():
        os.environ.setdefault(name, value)
    show_notes()
    code: object = 0
    try:
        app(prog_name="multiref")
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt as stop:
        code = _said(stop)
    except OSError as error:
        code = _unwritten(error)
    except Exception:
        print(_BUG, file=sys.stderr)
        raise
    try:
        if sys.__stdout__ is not None:
            sys.__stdout__.flush()
    except OSError as error:
        code = _unwritten(error)
    sys.exit(code)  # type: ignore[arg-type]


def _unwritten(error: OSError) -> int:
    """The exit code where nothing more can be written to standard output; another error goes on as a bug of ours."""
    if not isinstance(error, BrokenPipeError) and (error.errno not in _FULL or error.filename is not None):
        print(_BUG, file=sys.stderr)
        raise error
    if sys.__stdout__ is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())  # what is left is flushed into nothing
    if isinstance(error, BrokenPipeError):
        return 1
    print(f"Error: the output cannot be written: {error.strerror}; make room, or write it elsewhere.", file=sys.stderr)
    return 2
