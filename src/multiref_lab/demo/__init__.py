"""A generated world in which everything is exact: word problems of two skills, small models of them, answers that can all be enumerated.

`world.make(cache)` trains (once) a base model and two specialists; `run.run(...)` aligns the base model under several rules and measures each
against the exact optimum. The lab and the recipes use the same world: `World`, `WorldSettings`, `make`, `PairLaw`, `draw_pairs`, `Yardstick`.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "World": "world",
    "WorldSettings": "world",
    "make": "world",
    "PairLaw": "preferences",
    "draw_pairs": "preferences",
    "Yardstick": "yardstick",
    "DemoSettings": "settings",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Names are imported when first used: they load transformers."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
