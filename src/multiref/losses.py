"""Losses: numbers in, one value per example out. Where the rewards came from is another room's work."""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from multiref.errors import ArgumentError

__all__ = ["bradley_terry", "check_epsilon", "hinge", "ipo", "randomised_response", "robust"]


def bradley_terry(chosen_reward: Tensor, rejected_reward: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    r"""[*E], [*E] → [*E]: cross-entropy of a preference label smoothed by ε, under Bradley–Terry.

        L = −(1 − ε) log σ(m) − ε log σ(−m),      m = reward(chosen) − reward(rejected)

    With implicit rewards this is DPO (ε = 0) and conservative DPO (ε > 0).

    Reference: Rafailov et al., 2023, eq. 7; Mitchell, 2023 (conservative DPO).
    """
    epsilon = _flip_rate(label_smoothing)
    return _cross_entropy(chosen_reward - rejected_reward, 1 - epsilon, epsilon)


def robust(chosen_reward: Tensor, rejected_reward: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    r"""[*E], [*E] → [*E]: unbiased under labels flipped with probability ε: its mean over flips is the Bradley–Terry loss of
    the clean label.

        L = (−(1 − ε) log σ(m) + ε log σ(−m)) / (1 − 2ε)

    Reference: Chowdhury et al., 2024 (robust DPO), eq. 8.
    """
    epsilon = _flip_rate(label_smoothing)
    return _cross_entropy(chosen_reward - rejected_reward, 1 - epsilon, -epsilon) / (1 - 2 * epsilon)


def _cross_entropy(margin: Tensor, right: float, wrong: float) -> Tensor:
    """−right · log σ(m) − wrong · log σ(−m), 0 · (−inf) = 0: a rejected answer that the policy cannot give costs nothing."""
    loss = -right * logsigmoid(margin)
    return loss - wrong * logsigmoid(-margin) if wrong else loss


def ipo(chosen_reward: Tensor, rejected_reward: Tensor) -> Tensor:
    r"""[*E], [*E] → [*E]: (m − ½)², m = reward(chosen) − reward(rejected).

    With implicit rewards r = β ℓ this is β² (Δℓ − 1/(2β))²: IPO with τ = β, times the constant β² that keeps it in units of
    reward.

    Reference: Azar et al., 2023, eq. 17.
    """
    return (chosen_reward - rejected_reward - 0.5) ** 2


def hinge(chosen_reward: Tensor, rejected_reward: Tensor) -> Tensor:
    r"""[*E], [*E] → [*E]: max(0, 1 − m), m = reward(chosen) − reward(rejected).

    Reference: Zhao et al., 2023 (SLiC), eq. 1, with implicit rewards as in Liu et al., 2023 (RSO).
    """
    return torch.relu(1 - (chosen_reward - rejected_reward))


def _flip_rate(label_smoothing: float) -> float:
    if not 0 <= label_smoothing < 0.5:
        raise ArgumentError(f"label_smoothing: expected a flip rate in [0, 0.5), found {label_smoothing}.")
    return label_smoothing


def randomised_response(chosen_reward: Tensor, rejected_reward: Tensor, *, epsilon: float) -> Tensor:
    r"""[*E], [*E] → [*E]: the likelihood of a label that went through ε-randomised response (`data.privatise`).

        L = −log(α σ(m) + (1 − α) σ(−m)),     α = e^ε/(1 + e^ε) the chance that a label was kept

    The efficient loss: between −log α and −log(1 − α), so that no pair can pull without end. `robust` at the flip rate 1 − α is
    unbiased and convex but unbounded below, and overfits where there are few pairs; stop either early.
    `bradley_terry`'s `label_smoothing` corrects nothing: it shrinks margins further.

    Raises:
        ArgumentError: ε that is not positive and finite.

    Reference: arXiv 2510.13512 and its code (FOUND).
    """
    check_epsilon(epsilon)
    margin = chosen_reward - rejected_reward
    kept, flipped = -math.log1p(math.exp(-epsilon)), -epsilon - math.log1p(math.exp(-epsilon))
    return -torch.logaddexp(kept + logsigmoid(margin), flipped + logsigmoid(-margin))


def check_epsilon(epsilon: float) -> float:
    """Refuse a privacy budget that is not positive and finite."""
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or not 0 < epsilon < math.inf:
        raise ArgumentError(f"epsilon: expected a positive, finite privacy budget, found {epsilon!r}.")
    return float(epsilon)
