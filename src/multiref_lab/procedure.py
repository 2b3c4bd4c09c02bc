"""The paper's procedure as we read it: fit the reward by maximum likelihood on pairs, plug it into the closed form, measure what is lost.

The text of the paper's two algorithms is not available; this is the reading that its theorems suggest, for any regularizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from multiref import exact
from multiref.divergences import kl
from multiref.regularizers import Regularizer
from multiref_lab.estimators import finite_class_mle, logistic_mle
from multiref_lab.preferences import sample_pairs
from multiref_lab.problems import Bandits, LinearBandits

__all__ = ["Loss", "finite_class_curve", "linear_curve", "plug_in"]


@dataclass(frozen=True)
class Loss:
    """What acting on an estimate gives away, prompts averaged.

    Attributes:
        regularised: [S], J(π*) − J(π_r̂) ≥ 0.
        plain: [S], |E_π* r* − E_π_r̂ r*|, same strength.
        log_policy: [S, X, Y], log π_r̂.
        estimate: [S, X, Y], r̂.
    """

    regularised: Tensor
    plain: Tensor
    log_policy: Tensor
    estimate: Tensor


def plug_in(problem: Bandits, estimate: Tensor, regularizer: Regularizer, *, beta: float) -> Loss:
    r"""Estimate [S, X, Y] → the optimum for it, judged by the true reward.

    For reverse KL the loss is computed as β KL(π_r̂ ‖ π*), for the others as a difference of values.
    """
    best = exact.solve(problem.reward, problem.ref_logps, regularizer, beta=beta)
    used = exact.solve(estimate, problem.ref_logps, regularizer, beta=beta).log_policy
    if regularizer.alpha == 1:
        regularised = beta * kl(used, best.log_policy)
    else:
        regularised = best.value - exact.value(used, problem.reward, problem.ref_logps, regularizer, beta=beta)
    plain = ((best.policy - used.exp()) * problem.reward).sum(-1)
    return Loss(regularised.mean(-1), plain.mean(-1).abs(), used, estimate)


def linear_curve(
    problem: LinearBandits, sizes: Sequence[int], regularizer: Regularizer, *, beta: float, law: str, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Regularised and plain losses [S, P] at each number of pairs, reward fitted in the linear class."""
    losses = []
    for size in sizes:
        counts = sample_pairs(problem.reward, problem.law(law), size, generator=generator)
        fit = logistic_mle(problem.features, counts, ridge=1e-6)
        losses.append(plug_in(problem, problem.reward_of(fit.theta), regularizer, beta=beta))
    return torch.stack([x.regularised for x in losses], -1), torch.stack([x.plain for x in losses], -1)


def finite_class_curve(
    problem: Bandits,
    classes: Sequence[Tensor],
    sizes: Sequence[int],
    regularizer: Regularizer,
    *,
    beta: float,
    law: str,
    generator: torch.Generator,
) -> list[Loss]:
    """What is lost at each number of pairs, with one finite class [S, M, X, Y] for each."""
    losses = []
    for size, candidates in zip(sizes, classes):
        counts = sample_pairs(problem.reward, problem.law(law), size, generator=generator)
        chosen = finite_class_mle(candidates, counts)
        losses.append(plug_in(problem, candidates[torch.arange(len(chosen)), chosen], regularizer, beta=beta))
    return losses
