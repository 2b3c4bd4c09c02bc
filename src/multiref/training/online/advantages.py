"""Baselines: what is taken off a return before it multiplies ∇ log π.
Unbiased where it does not depend on the sample itself."""

from __future__ import annotations

from torch import Tensor

from multiref.errors import ArgumentError

__all__ = ["leave_one_out", "standardised"]


def leave_one_out(returns: Tensor, *, axis: int = 1) -> Tensor:
    """[P, G, *T] → [P, G, *T]: R_i − mean of the other G − 1 of its prompt (at the same token, where returns are to-go).
    axis: of G.

    Unbiased, for the others say nothing about completion i. It is G/(G − 1) times R_i − mean over all G:
    with the group mean instead, the reward (and a penalty in it) shrinks by (G − 1)/G while a penalty in the loss does not,
    so that β would silently become β G/(G − 1).

    Reference: RLOO, arXiv 2402.14740; the remark on β is DERIVED.
    """
    size = returns.shape[axis]
    if size < 2:
        raise ArgumentError(f"group: a leave-one-out baseline needs at least 2 completions of a prompt, found {size}.")
    return (returns - returns.mean(axis, keepdim=True)) * size / (size - 1)


def standardised(returns: Tensor, epsilon: float = 1e-4) -> Tensor:
    """[P, G, *T] → [P, G, *T]: (R_i − mean)/(standard deviation + ε) over the group: GRPO's usual habit.

    β then means β σ_x, σ_x the deviation of the group: with the penalty in the loss that is another optimum per prompt,
    and for small β none but the greedy policy (`standardised_fixed_point`); with the penalty in the reward the noise grows
    without bound as the optimum is neared, where all returns are equal.

    Reference: arXiv 2402.03300 for the rule; its optimum DERIVED (docs/theory.md 6).
    """
    centred = returns - returns.mean(1, keepdim=True)
    return centred / (returns.std(1, keepdim=True) + epsilon)
