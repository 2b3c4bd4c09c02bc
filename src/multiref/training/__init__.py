"""Training: a policy from preference pairs and stored scores, as a `transformers.Trainer` whose objective is a small value.

`PreferenceTrainer(model, regularizer, beta=…, scores=…, args=…)`; what it minimises is an `Objective`: `Preference`, or one of the published
rivals (`MultiDPO`, and the wrappers `TrustRegion`, `AdaptiveWeights`, `LengthNormalised`) under the same trainer. Weights that change while
training are a `WeightStrategy`: `SlidingWindow`, `ThompsonSampling`. `RewardTrainer` makes reward models from pairs.
"""

import importlib
from typing import Any

_HOMES = {
    "PreferenceTrainer": "multiref.training.preference",
    "PreferenceData": "multiref.training.dataset",
    "Objective": "multiref.training.objectives",
    "PairLogps": "multiref.training.objectives",
    "Preference": "multiref.training.objectives",
    "MultiDPO": "multiref.training.objectives",
    "mrpo": "multiref.training.rivals",
    "AdaptiveWeights": "multiref.training.rivals",
    "LengthNormalised": "multiref.training.rivals",
    "TrustRegion": "multiref.training.rivals",
    "WeightStrategy": "multiref.training.strategies",
    "SlidingWindow": "multiref.training.strategies",
    "ThompsonSampling": "multiref.training.strategies",
    "RewardTrainer": "multiref.training.reward.trainer",
    "RewardData": "multiref.training.reward.data",
    "open_reward_model": "multiref.training.reward.model",
}

__all__ = sorted([*_HOMES, "online"])


def __getattr__(name: str) -> Any:
    """Names are imported when first used, so that `import multiref` does not load transformers."""
    if name == "online":
        return importlib.import_module("multiref.training.online")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
