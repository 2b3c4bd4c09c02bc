"""From what a user writes down (a path, a mapping, a URL, an object) to a reference."""

import os
from collections.abc import Mapping
from typing import Any

from multiref.errors import ArgumentError
from multiref.references.protocol import Reference

__all__ = ["Opener", "location", "open_reference"]


class Opener:
    """Opens one reference, at most once in a process. It travels to other processes as its description, not as a model."""

    def __init__(self, what: Any, options: Mapping[str, Any]):
        self.what, self.options = what, dict(options)
        self.opened: Reference | None = None

    def __call__(self) -> Reference:
        if self.opened is None:
            self.opened = open_reference(self.what, **self.options)
        return self.opened

    def __reduce__(self) -> tuple[Any, ...]:
        return Opener, (self.what, self.options)


def open_reference(what: Any, **options: Any) -> Reference:
    """A model folder or hub id, a mapping of arguments, a server's URL, a `LanguageModel`, or an object with the protocol's two methods."""
    if isinstance(what, Reference):
        return what
    if isinstance(what, Mapping):
        options = {**options, **what}
        what = options.pop("endpoint", None) or options.pop("model", None)
    if isinstance(what, str) and what.startswith(("http://", "https://")):
        from multiref.references.server import ServerReference

        return ServerReference(what, **options)
    in_memory = hasattr(what, "model") and hasattr(what, "tokenizer")  # a `LanguageModel`
    if in_memory or (isinstance(what, str | os.PathLike) and str(what)):
        from multiref.references.local import LocalReference

        return LocalReference(what if in_memory else str(what), **options)
    raise ArgumentError(
        f"A reference is given as {type(what).__name__}; expected a model folder or hub id, the URL of a completion server, a mapping with "
        "`model` or `endpoint`, or an object with the methods identity() and score(items)."
    )


def location(what: Any) -> str:
    """Where a reference was taken from, for people and for noticing a change in place; no score depends on it."""
    if isinstance(what, Mapping):
        base = what.get("endpoint") or what.get("model")
        adapter = what.get("adapter")
        return f"{location(base)} + {location(adapter)}" if adapter else location(base)
    if isinstance(what, str) and what.startswith(("http://", "https://")):
        return what
    if isinstance(what, str | os.PathLike):
        return os.path.abspath(what) if os.path.exists(what) else str(what)
    return f"<{type(what).__module__}.{type(what).__qualname__}>"
