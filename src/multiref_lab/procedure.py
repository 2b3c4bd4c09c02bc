"""The paper's procedure as we read it: fit the reward by maximum likelihood on pairs, plug it into the closed form,
measure what is lost.

The text of the paper's two algorithms is not available; this is the reading that its theorems suggest, for any regularizer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from multiref import exact
from multiref.divergences import kl
from multiref.regularizers import Regularizer
from multiref_lab.estimators import likeliest, logistic_mle
from multiref_lab.preferences import PairCounts, sample_pairs
from multiref_lab.problems import Bandits, LinearBandits


@dataclass(frozen=True)
class Loss:
    """What acting on an estimate gives away, prompts averaged.

    Attributes:
        regularised: [S], J(π*) − J(π_r̂) ≥ 0.
        plain: [S], |E_π* r* − E_π_r̂ r*|, same strength.
        best: [S, X, Y], log π*.
        log_policy: [S, X, Y], log π_r̂.
        estimate: [S, X, Y], r̂.
    """

    regularised: Tensor
    plain: Tensor
    best: Tensor
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
    return Loss(regularised.mean(-1), plain.mean(-1).abs(), best.log_policy, used, estimate)


@dataclass(frozen=True)
class LearningCurve:
    """What is lost at each of P numbers of pairs; `regularised` and `plain` [S, P]."""

    sizes: Sequence[int]
    losses: Sequence[Loss]
    regularised: Tensor
    plain: Tensor


def learning_curve(
    problem: Bandits,
    sizes: Sequence[int],
    estimate: Callable[[int, PairCounts], Tensor],
    regularizer: Regularizer,
    *,
    beta: float,
    law: str,
    generator: torch.Generator,
) -> LearningCurve:
    """Pairs from `law`, an estimate of the reward, the closed form for it.

    Args:
        estimate: the place of a number of pairs among `sizes`, and that many pairs → r̂ [S, X, Y].
    """
    drawn = (sample_pairs(problem.reward, problem.law(law), size, generator=generator) for size in sizes)
    estimates = (estimate(i, counts) for i, counts in enumerate(drawn))
    losses = [plug_in(problem, each, regularizer, beta=beta) for each in estimates]
    regularised, plain = (torch.stack(each, -1) for each in zip(*((loss.regularised, loss.plain) for loss in losses)))
    return LearningCurve(sizes, losses, regularised, plain)


def linear_fit(problem: LinearBandits) -> Callable[[int, PairCounts], Tensor]:
    """The reward fitted in the problem's linear class."""
    return lambda i, counts: problem.reward_of(logistic_mle(problem.features, counts, ridge=1e-6).theta)


def table_fit(counts: PairCounts, *, ridge: float, kept: float = 1.0) -> Tensor:
    """[S, 1, Y]: the likeliest reward of pairs of one prompt, a number for each completion, 0 for the last."""
    features = torch.eye(int(counts.second.max()) + 1, dtype=torch.float64)[None, :, :-1]
    return torch.einsum("xyd,sd->sxy", features, logistic_mle(features, counts, ridge=ridge, kept=kept).theta)


def finite_fit(classes: Sequence[Tensor]) -> Callable[[int, PairCounts], Tensor]:
    """The likeliest reward of a finite class [S, M, X, Y], one class for each number of pairs."""
    return lambda i, counts: likeliest(classes[i], counts)
