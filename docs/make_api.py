"""The API pages of the site, one a room, made of what each room's `__all__` offers: `python docs/make_api.py`.

Ends with a list, and code 1, where a public name, method or property has no docstring.
"""

import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parent / "api"
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
      members: [{members}]
"""


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


def main() -> int:
    """Write the pages; the exit code."""
    FOLDER.mkdir(exist_ok=True)
    bare = []
    for room in ROOMS:
        module = importlib.import_module(f"multiref.{room}")
        names = sorted(name for name in module.__all__ if not inspect.ismodule(getattr(module, name)))
        bare += [line for name in names for line in undocumented(f"multiref.{room}.{name}", getattr(module, name))]
        (FOLDER / f"{room}.md").write_text(PAGE.format(room=room, members=", ".join(names)), encoding="utf-8")
    if bare:
        print(f"{len(bare)} public names without a docstring:", *bare, sep="\n  ")
    return bool(bare)


if __name__ == "__main__":
    sys.exit(main())
