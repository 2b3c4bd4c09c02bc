"""References: K frozen models → scores of completions, computed once and stored.

`References({...}).score(pairs, store=…)` gives `SequenceScores`, joined to data by content; the kinds of reference are behind one protocol
(`protocol.py`), the store behind `Store`, and where the work runs behind an engine (local or ray).
"""

import importlib
from typing import Any

_HOMES = {
    "References": "multiref.references.collection",
    "SequenceScores": "multiref.references.scores",
    "TokenScores": "multiref.references.scores",
    "content_key": "multiref.references.scores",
    "Store": "multiref.references.store",
    "token_scores": "multiref.references.token_scoring",
    "read_scores": "multiref.references.stored",
    "Item": "multiref.references.protocol",
    "Reference": "multiref.references.protocol",
    "Scored": "multiref.references.protocol",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Names are imported when first used: a store can be read without loading what runs models."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
