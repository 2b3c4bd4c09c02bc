"""Policy-gradient training under K references, and multi-teacher distillation: the penalty that one thinks one optimises is the one optimised.

Estimators and their fixed points are arrays only (`penalty`, `advantages`, `backward_induction`); `OnlineTrainer` is the loop around them.
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
    "Method": "methods",
    "RLOO": "methods",
    "Reinforce": "methods",
    "GRPO": "methods",
    "Rule": "rule",
    "describe": "rule",
    "Surrogate": "surrogate",
    "compute_surrogate": "surrogate",
    "FullVocabulary": "penalty",
    "PerTokenReverseKL": "penalty",
    "PerTokenForwardKL": "penalty",
    "WarmUp": "warm_up",
    "ServerSampler": "server_sampler",
    "AdapterPush": "server_sampler",
    "TextStates": "distill",
    "estimate_disagreement": "disagreement_smc",
    "FromReferences": "penalty",
    "OnlineTrainer": "loop",
    "OnlineArguments": "arguments",
    "AdaptiveBeta": "arguments",
    "Reward": "rewards",
    "RewardModel": "rewards",
    "as_rewards": "rewards",
    "total_reward": "rewards",
    "reward_rollouts": "rewards",
    "lexicon_reward": "rewards",
    "evaluate_online": "evaluate",
    "floor_figures": "evaluate",
    "floors": "evaluate",
    "text_losses": "evaluate",
    "penalty_named": "penalty",
    "conditionals": "backward_induction",
    "levels_of": "backward_induction",
    "path_tokens": "backward_induction",
    "sequence_logps": "backward_induction",
    "disagreements": "backward_induction",
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
