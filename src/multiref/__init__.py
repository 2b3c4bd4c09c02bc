"""multiref: align a language model against several reference models at once, under an objective one can check.

Everything loads at first use, so that `import multiref` (and `multiref --help`) does not wait for torch.
What there is stands in `__init__.pyi`, which type checkers and editors read too.
"""

from lazy_loader import attach_stub

from multiref import _moved

__version__ = "0.2.0"

_moved.install()
_find, __dir__, __all__ = attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    if (old := f"{__name__}.{name}") in _moved.MOVED:
        raise AttributeError(f"{old} is now {_moved.MOVED[old]}: import that (CHANGELOG.md has the table of names)")
    return _find(name)
