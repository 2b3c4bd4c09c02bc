"""Rules without sampling: every completion of an enumerable policy as a sample,
and the expected update by autograd through the rule itself.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from multiref.pools import power_pool
from multiref.regularizers import Regularizer
from multiref.training.online import Penalty, PerTokenReverseKL, Samples, disagreements, path_tokens

Levels = Sequence[Tensor]


def enumerated_samples(
    levels: Levels,
    ref_levels: Levels,
    weights: Sequence[float] | Tensor | None = None,
    divergence: Callable[[Tensor, Tensor], Tensor] = PerTokenReverseKL.at_state,
) -> Samples:
    """Levels [V^t, V], [K, V^t, V] → `Samples` of all V^L completions, one each.
    divergence: (log π_t, Σ_k w_k log π_{k,t}) → D_t.
    """
    tokens, refs = path_tokens(levels), path_tokens(ref_levels)

    def along(numbers: Sequence[Tensor]) -> Tensor:  # [V^t] per level → [V^L, L]
        return path_tokens([each.unsqueeze(-1).expand_as(level) for each, level in zip(numbers, levels)])

    divergences = [divergence(level, power_pool(ref, weights, order=0.0)) for level, ref in zip(levels, ref_levels)]
    return Samples(
        tokens,
        torch.ones_like(tokens, dtype=torch.bool),
        refs.sum(-1),
        weights,
        ref_token_logps=refs,
        disagreements=along(disagreements(ref_levels, weights)),
        divergences=along(divergences),
    )


def expected_surrogate(
    penalty: Penalty,
    levels: Levels,
    ref_levels: Levels,
    reward: Tensor,
    regularizer: Regularizer,
    *,
    beta: float,
    standardise: bool = False,
) -> Tensor:
    r"""A scalar whose gradient is the rule's expected update at the policy `levels` (which may require a gradient):
    samples of π, no baseline needed.

        Σ_y ⌊π(y)⌋ [ Σ_t ⌊R_t(y)⌋ log π_t(y) − β Σ_t loss_t(y) ],      R = r − β · (terms in the reward),  ⌊·⌋ without gradient

    Args:
        standardise: divide R − E R by its standard deviation under π: GRPO's usual habit, in the limit of large groups.
    """
    samples = enumerated_samples(levels, ref_levels, regularizer.weights, type(penalty).at_state)
    probability = samples.logps.exp().detach()
    ret = reward[:, None].expand_as(samples.token_logps)
    terms = penalty.reward_terms(samples, regularizer)
    if terms is not None:
        ret = ret - beta * (terms[:, None] if terms.ndim == 1 else terms)
    if standardise:
        mean = (probability[:, None] * ret).sum(0)
        ret = (ret - mean) / (probability[:, None] * (ret - mean) ** 2).sum(0).sqrt()
    total: Tensor = (probability[:, None] * ret * samples.token_logps).sum()
    loss = penalty.loss_terms(samples)
    if loss is not None:
        total = total - beta * (probability[:, None] * loss).sum()
    return total
