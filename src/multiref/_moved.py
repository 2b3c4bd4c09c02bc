"""Where the names of 0.1 went: an old import raises with the new name.

The finder stands last in `sys.meta_path`, so an import that works never meets it;
a module file for each old name would be met by every tool that walks the package.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

MOVED = {
    "multiref.demo": "multiref_lab.demo",
    "multiref.lab": "multiref_lab",
    "multiref.training.bilevel": "multiref.training.iterative",
}


class _Moved(MetaPathFinder):
    """Finds nothing; says where a module of 0.1 is now."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if name in MOVED:
            raise ModuleNotFoundError(f"{name} is now {MOVED[name]}: import that (CHANGELOG.md has the table of names)")


def install() -> None:
    """Put the finder last, once."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
