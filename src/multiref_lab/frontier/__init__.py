"""The published figure at small scale: rules swept over the weight of one reference, offline and online, several seeds each, with errors.

`run(settings, output, …)` trains what is missing and returns `Findings`; `write(findings, output)` makes the page, the figures and results.json.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "FrontierSettings": "settings",
    "Generated": "settings",
    "Stories": "settings",
    "Offline": "settings",
    "Online": "settings",
    "Cell": "grid",
    "cells": "grid",
    "run": "execute",
    "Findings": "findings",
    "write": "page",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Names are imported when first used: most of them load transformers."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
