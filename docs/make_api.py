"""The API pages of the site, one a room, made of what each room's `__all__` offers: `python docs/make_api.py`.

Below a name's docstring stands its example: the cell of `docs/examples/ROOM.py` whose head names it. Ends with a list, and
code 1, where a public name, method or property has no docstring, or a public name no example. Exceptions, protocols and plain
values (aliases, tables, constants) need no example of their own; a result is named in the head of the cell that makes it.
"""

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parent / "api"
EXAMPLES = Path(__file__).parent / "examples"
ROOMS = (
    "exact", "pools", "divergences", "regularizers", "losses", "weighting", "bounds", "bilevel", "data", "models",
    "references", "decoding", "training", "training.online", "training.iterative", "evaluation", "runs", "report",
    "serving", "integrations.trl", "integrations.lm_eval", "errors",
)  # fmt: skip
PAGE = """\
# multiref.{room}

::: multiref.{room}
    options:
      show_root_heading: false
      members: false

{setup}
{names}"""
NAME = """\
::: multiref.{room}.{name}

{example}"""


def cells(room: str) -> tuple[str, dict[str, str]]:
    """The lines that all examples of a room start from, and the example of each name, without what only tests read."""
    source = (EXAMPLES / f"{room}.py").read_text(encoding="utf-8")
    shown = re.sub(r"  # = ", "  # ", source).split("\n# %% ")
    found = {}
    for cell in shown[1:]:
        head, _, code = cell.partition("\n")
        found |= dict.fromkeys((name.strip() for name in head.split(",")), code.strip())
    return shown[0], found


def fenced(code: str) -> str:
    """The code as a block of the page."""
    return f"```python\n{code.strip()}\n```\n" if code.strip() else ""


def undocumented(name: str, found: object) -> Iterator[str]:
    """The name, or those of its public methods and properties, that have no docstring, of their own or inherited."""
    if not (inspect.isclass(found) or inspect.isfunction(found)):
        return
    if not inspect.getdoc(found):
        yield name
    if inspect.isclass(found):
        for member, value in vars(found).items():
            public = not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, property | classmethod))
            if public and not inspect.getdoc(getattr(found, member)):
                yield f"{name}.{member}"


def torn(found: object) -> bool:
    """Whether the site would tear a sentence in two, or lose it: "Errors: …" with an indented line behind it is a box."""
    return re.search(r"(\A|\n\n)\w[\w ]*: .+\n    ", inspect.getdoc(found) or "") is not None


def needs_example(found: object) -> bool:
    """Whether a reader would ask how it is used: functions and classes, but those that the head of this file exempts."""
    if inspect.isclass(found):
        return not issubclass(found, BaseException) and not getattr(found, "_is_protocol", False)
    return callable(found) and type(found).__module__ not in ("types", "typing", "collections.abc")


def write_page(room: str) -> Iterator[str]:
    """Writes a room's page; what is missing there."""
    module = importlib.import_module(f"multiref.{room}")
    names = sorted(name for name in module.__all__ if not inspect.ismodule(getattr(module, name)))
    setup, examples = cells(room)
    for name in names:
        found = getattr(module, name)
        yield from (f"no docstring: {line}" for line in undocumented(f"multiref.{room}.{name}", found))
        if torn(found):
            yield f"an indented line behind one that begins with a word and a colon: multiref.{room}.{name}"
        if needs_example(found) and name not in examples:
            yield f"no example: multiref.{room}.{name}"
    yield from (f"docs/examples/{room}.py: {name} is no public name" for name in sorted(set(examples) - set(names)))
    parts = [NAME.format(room=room, name=name, example=fenced(examples.get(name, ""))) for name in names]
    docstring, _, code = setup.partition('"""\n')
    opening = docstring.strip().strip('"') + (f" The examples start from this:\n\n{fenced(code)}" if code.strip() else "\n")
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{room}.md").write_text(PAGE.format(room=room, setup=opening, names="\n".join(parts)), encoding="utf-8")


def main() -> int:
    """Write the pages; the exit code."""
    missing = [line for room in ROOMS for line in write_page(room)]
    if missing:
        print(f"{len(missing)} missing:", *missing, sep="\n  ")
    return bool(missing)


if __name__ == "__main__":
    sys.exit(main())
