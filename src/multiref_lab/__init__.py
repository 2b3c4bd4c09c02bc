"""The papers as experiments: claims with verdicts and their ledger, stability, frontier, races, the demo's world.

`claims()` lists what is claimed, `verify(name)` decides one, `Ledger` keeps the verdicts; `problems`, `sample_pairs` and the estimators serve one's own.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Check": "claim", "Claim": "claim", "Curve": "claim", "Effort": "claim", "Estimate": "claim", "Figure": "claim", "Measurement": "claim",
    "Verdict": "claim", "LogisticFit": "estimators", "finite_class_mle": "estimators", "logistic_mle": "estimators",
    "hidden_state_features": "hidden_states", "principal_features": "hidden_states", "Ledger": "ledger", "PairCounts": "preferences",
    "sample_pairs": "preferences", "Loss": "procedure", "plug_in": "procedure", "bootstrap_mean": "slopes", "fit_slope": "slopes",
    "Outcome": "registry", "claims": "registry", "find": "registry", "verify": "registry",
}  # fmt: skip

__all__ = sorted([*_HOMES, "problems"])


def __getattr__(name: str) -> Any:
    if name == "problems":
        return import_module("multiref_lab.problems")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
