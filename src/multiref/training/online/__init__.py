"""Policy-gradient training under K references, and multi-teacher distillation: the penalty that one thinks one optimises is the one optimised.

Estimators and their fixed points are arrays only (`penalty`, `advantages`, `tree`, `enumerated`); `OnlineTrainer` is the loop around them.
"""

import importlib
from typing import Any

_HOMES = {
    "Samples": "samples",
    "Penalty": "penalty",
    "PenaltyInReward": "penalty",
    "RewardToGo": "penalty",
    "RatioK3": "penalty",
    "K2Loss": "penalty",
    "K3Loss": "penalty",
    "K3PoolLoss": "penalty",
    "K3RenormalisedLoss": "penalty",
    "RenormalisedInReward": "penalty",
    "PENALTIES": "penalty",
    "expected_surrogate": "enumerated",
    "enumerated_samples": "enumerated",
    "standardised_fixed_point": "enumerated",
    "Method": "methods",
    "RLOO": "methods",
    "Reinforce": "methods",
    "GRPO": "methods",
    "describe": "methods",
    "surrogate": "surrogate",
    "FullVocabulary": "penalty",
    "PerTokenReverseKL": "penalty",
    "PerTokenForwardKL": "penalty",
    "WarmUp": "warm_up",
    "ServerSampler": "server_sampler",
    "AdapterPush": "server_sampler",
    "TextStates": "distill",
    "disagreement_smc": "disagreement_smc",
    "FromReferences": "penalty",
    "OnlineTrainer": "loop",
    "OnlineArguments": "arguments",
    "AdaptiveBeta": "arguments",
    "Reward": "rewards",
    "RewardModel": "rewards",
    "sample": "rollout",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Names are imported when first used: the loop needs transformers, the estimators do not."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
