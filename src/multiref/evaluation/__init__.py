"""Evaluation: policies under one yardstick, with errors. `compare` where the support can be enumerated, `compare_samples` where it cannot.
`inspect` says what reference scores are worth on preference pairs, before any training.

Numbers out, a value per method, metric and unit (a seed, or a prompt); `report` shows them."""

import importlib
from typing import Any

from multiref.evaluation.compare import Comparison, compare

_HOMES = {
    "PassAtK": "multiref.evaluation.pass_at_k",
    "sampled_rewards": "multiref.evaluation.pass_at_k_samples",
    "compare_samples": "multiref.evaluation.sampled",
    "Inspection": "multiref.evaluation.inspection",
    "inspect": "multiref.evaluation.inspection",
}

__all__ = ["Comparison", "Inspection", "PassAtK", "compare", "compare_samples", "inspect", "sampled_rewards"]


def __getattr__(name: str) -> Any:
    """What runs models is imported when first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
