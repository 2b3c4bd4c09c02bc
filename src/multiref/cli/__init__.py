"""The command line: one verb a file, `cli/<verb>.py`, with a function `command(...)` (or a typer `app` where a verb has verbs).

A verb's file is imported only when that verb is asked for, so `multiref --help` answers at once; what is heavy is imported inside the verb.
A `MultirefError` becomes one message on stderr and exit code 2, without a traceback. Anything else is a bug of ours and keeps its traceback.
"""

import importlib
import importlib.util
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from multiref.errors import MultirefError

__all__ = ["app", "main"]

# verb → what `multiref --help` says about it. Add a line here and a file of the same name beside this one.
VERBS = {
    "demo": "Make a small world and align a model in it, under several rules, with everything exact.",
    "solve": "Solve a multi-reference problem given as numbers, exactly.",
    "score": "Score a file of preference pairs under K references, once, into a store.",
    "store": "Look after a store of scores: ls, verify, prune, export.",
    "inspect": "Does a second reference help me? The evidence in your scores, and a verdict.",
    "train": "Train a policy on preference pairs against K references.",
    "sweep": "Change the weights after training, by the merge that is exact for reverse KL.",
    "decode": "Sample the optimum without training.",
    "serve": "Serve a pooled reference or an optimum over HTTP.",
    "evaluate": "Compare policies under one yardstick, with intervals.",
    "frontier": "Trace reward against divergence for several rules.",
    "bound": "Evaluate a bound of the theory on your numbers.",
    "verify": "Run the claims of the papers as experiments, each with a verdict.",
    "stability": "How far RLHF variants move when one example is replaced.",
}


class Verbs(TyperGroup):
    """A group that knows its verbs by name and imports one only when it is invoked."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for verb, line in VERBS.items():
            if importlib.util.find_spec(f"{__name__}.{verb}") is not None:
                self.commands[verb] = _stand_in(verb, line)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, load(name) if command is not None and name is not None else command, rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MultirefError as error:
            print(f"Error: {error}", file=sys.stderr)
            raise typer.Exit(2) from None


def _stand_in(verb: str, line: str) -> Any:
    """A command with the verb's name and help line: enough for the listing, and for a suggestion after a typing error."""
    stub = typer.Typer(add_completion=False)
    stub.command(verb, help=line)(lambda: None)
    return typer.main.get_command(stub)


def load(verb: str) -> Any:
    """The command of one verb, from `cli/<verb>.py`: its typer `app` if it has one, else its function `command`."""
    module = importlib.import_module(f"{__name__}.{verb}")
    verb_app = getattr(module, "app", None)
    if verb_app is None:
        verb_app = typer.Typer(add_completion=False)
        verb_app.command(verb)(module.command)
    command = typer.main.get_command(verb_app)
    command.name = verb
    return command


app = typer.Typer(
    cls=Verbs,
    name="multiref",
    no_args_is_help=True,
    add_completion=False,
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
    """Entry point of the `multiref` command."""
    try:
        app(prog_name="multiref")
    except KeyboardInterrupt:
        print("Interrupted. What was already stored is kept; run the same command again to go on.", file=sys.stderr)
        sys.exit(130)
