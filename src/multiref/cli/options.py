"""Options that several verbs have: the same name, the same letter, the same words."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from multiref.cli.voice import Made
from multiref.errors import ArgumentError

if TYPE_CHECKING:
    from multiref.data import Selection


Data: TypeAlias = Annotated[
    str,
    typer.Argument(
        help="Preference pairs: a file (.jsonl, .json, .csv, .tsv, also .gz, .zst, .bz2; .parquet), a folder of such or of "
        "save_to_disk, a URL, a hub id.",
        show_default=False,
    ),
]
Store: TypeAlias = Annotated[Path, "--store -s", "The folder of scores; `multiref score` makes it."]
NamedReferences: TypeAlias = Annotated[
    list[str], "--reference -r", "name=PATH: a model folder, a hub id, or a server's URL. Once per reference."
]
Seed: TypeAlias = Annotated[
    int, typer.Option(min=0, max=2**31 - 1, help="Seed of all that is drawn: samples, folds, resampling.")
]
REWARDS = "lexicon=FILE, length=WORDS, model=FOLDER, python=FILE:FUNCTION, or a YAML file"
Out = "--out --output -o"  # what a verb writes: one folder or file; both names, in every verb
Device: TypeAlias = Annotated[str | None, "cpu, cuda, cuda:1, …; default a GPU if there is one."]

TakeOver: TypeAlias = Annotated[
    bool, "--take-over", "Take the folder over: a process that writes it stops, and this one goes on."
]


def for_each(option: str, given: list[str] | None, names: list[str]) -> dict[str, str]:
    """'VALUE' for all, 'name=VALUE' for one → {name: VALUE}. ArgumentError for a name that is none of these or stands twice."""
    values: dict[str, str] = {}
    for text in given or []:
        name, equals, value = map(str.strip, text.partition("="))
        if not equals or text.lstrip().startswith("{"):
            name, value = "", text.strip()  # for all
        elif name not in names:
            raise ArgumentError(f"{option} {text!r}: {name!r} is no reference that has a model here ({', '.join(names)}).")
        if name in values:
            raise ArgumentError(f"{option} {text!r}: {name or 'a value for all'} stands there twice; keep one of the two.")
        values[name] = value
    return {name: values.get(name, values.get("", "")) for name in names if {name, ""} & values.keys()}


def by_name(option: str, given: list[str] | None) -> dict[str, str]:
    """['name=PATH', …] → {name: PATH}. ArgumentError for what is not so, and for a name that stands twice."""
    found: dict[str, str] = {}
    for text in given or []:
        name, _, where = map(str.strip, text.partition("="))
        if not name or not where or name in found:
            raise ArgumentError(f"{option} {text!r}: expected name=PATH, each name once, such as {option} base=./models/base.")
        found[name] = where
    return found


def weights_of(names: list[str], given: list[str] | None) -> tuple[float, ...] | None:
    """The weights of --weight in the order of the references; None where none is given."""
    found = for_each("--weight", given, names)
    if found and found.keys() != set(names):
        raise ArgumentError(f"--weight: expected one of each reference ({', '.join(names)}), found {', '.join(found)}.")
    try:
        return tuple(float(found[name]) for name in names) if found else None
    except ValueError as error:
        raise ArgumentError(f"--weight: expected name=NUMBER ({error}).") from None


def belong(to: str, there: object, **options: object) -> None:
    """ArgumentError for options that say nothing where something else is not there."""
    idle = [f"--{name.replace('_', '-')}" for name, value in options.items() if value]
    if idle and not there:
        raise ArgumentError(f"{', '.join(idle)}: expected with {to} only. Add it, or leave {', '.join(idle)} out.")


def selection(
    name: Annotated[str | None, "--name", "Configuration of a data set that has several."] = None,
    split: Annotated[str | None, "--split", "Split of a data set, or a part: 'train[:5%]'."] = None,
    column: Annotated[
        list[str] | None, "--column", "OURS=THEIRS: where prompt, chosen, rejected, label, … are called otherwise. Repeatable."
    ] = None,
    rankings: Annotated[
        Literal["ends", "all"], "--rankings", "Of several answers with scores: best against worst, or all pairs."
    ] = "ends",
    bad_rows: Annotated[Literal["refuse", "skip"], "--bad-rows", "What becomes of rows that cannot be used."] = "refuse",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first NUMBER pairs or prompts.")] = None,
) -> "Selection":
    """The options of data as one value. ArgumentError for a --column that is none."""
    from multiref.data import Selection

    columns: dict[str, object] = {}
    for text in column or []:
        ours, equals, theirs = text.partition("=")
        if not equals or not theirs:
            raise ArgumentError(f"--column {text!r}: expected OURS=THEIRS, such as --column prompt=instruction.")
        if ours.strip() in columns:
            raise ArgumentError(f"--column {text!r}: {ours.strip()} stands there twice; keep one of the two.")
        columns[ours.strip()] = theirs.strip()
    return Selection(name, split, columns, rankings, bad_rows, limit)


def options_of(chosen: "Selection", *, name: str = "--name") -> str:
    """The options of data again, for the command to go on with. name: what --name is called there."""
    parts = [name, chosen.name] if chosen.name else []
    parts += ["--split", chosen.split] if chosen.split else []
    parts += [part for ours, theirs in chosen.columns.items() for part in ("--column", f"{ours}={theirs}")]
    parts += ["--rankings", "all"] if chosen.rankings == "all" else []
    parts += ["--bad-rows", "skip"] if chosen.bad_rows == "skip" else []
    parts += ["--limit", str(chosen.limit)] if chosen.limit else []
    return "".join(f" {shlex.quote(part)}" for part in parts)


Chosen: TypeAlias = Annotated[Any, Made(selection)]  # a verb gets a `Selection`
ChosenAnyRows: TypeAlias = Annotated[Any, Made(selection, without=("bad_rows",))]
ChosenOtherName: TypeAlias = Annotated[Any, Made(selection, without=("name",))]
ChosenColumns: TypeAlias = Annotated[Any, Made(selection, without=("rankings", "bad_rows", "limit"))]
