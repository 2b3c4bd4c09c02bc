"""The names of penalties in configuration files."""

from multiref.training.checks import check_choice
from multiref.training.online.exact_penalties import FromReferences, FullVocabulary, PenaltyInReward, RewardToGo
from multiref.training.online.other_penalties import (
    K2Loss,
    K3Loss,
    K3PoolLoss,
    K3RenormalisedLoss,
    PerTokenForwardKL,
    PerTokenReverseKL,
    RatioK3,
    RenormalisedInReward,
)
from multiref.training.online.penalty import Penalty

PENALTIES: dict[str, Penalty] = {
    "reward": PenaltyInReward(),
    "reward_to_go": RewardToGo(),
    "ratio_k3": RatioK3(),
    "k2": K2Loss(),
    "k3": K3Loss(),
    "k3_pool": K3PoolLoss(),
    "k3_renormalised": K3RenormalisedLoss(),
    "reward_renormalised": RenormalisedInReward(),
    "full_vocabulary": FullVocabulary(),
    "per_token_reverse_kl": PerTokenReverseKL(),
    "per_token_forward_kl": PerTokenForwardKL(),
    "reference_samples": FromReferences(),
}


def penalty_named(name: str) -> Penalty:
    """A penalty by its name in a configuration. ArgumentError for a name that is none."""
    check_choice("penalty", name, PENALTIES)
    return PENALTIES[name]
