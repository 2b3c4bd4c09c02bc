"""One reference against several at the same number of pairs: when the coverage constant favours mixing, and when it does not."""

from __future__ import annotations

import torch
from torch import Tensor

from multiref import bounds, exact
from multiref.regularizers import ReverseKL
from multiref_lab.claim import Check, Claim, Effort, Figure, Measurement, all_hold
from multiref_lab.problems import LinearBandits, linear_bandits
from multiref_lab.procedure import linear_curve
from multiref_lab.slopes import bootstrap_mean, fit_slope, log_spaced, measured_curve

__all__ = ["MIXING_HELPS", "MIXING_HURTS"]

_COMPLETIONS = 6


def _tabular(seeds: int, ref_logps: Tensor, generator: torch.Generator) -> LinearBandits:
    """A free reward per completion (the last one is the gauge), U(0, 1)-spread truths, the given references [K, Y] in every problem."""
    eye = torch.eye(_COMPLETIONS, dtype=torch.float64)[:, :-1].unsqueeze(0)
    made = linear_bandits(seeds, features=eye, generator=generator)
    theta = torch.rand(seeds, _COMPLETIONS - 1, generator=generator, dtype=torch.float64) - 0.5
    refs = ref_logps[:, None, None, :].expand(-1, seeds, 1, -1)
    return LinearBandits(
        torch.einsum("sxyd,sd->sxy", made.features, theta),
        refs,
        torch.full((len(refs),), 1 / len(refs)).double(),
        made.features,
        theta,
    )


def _references(probabilities: list[list[float]]) -> Tensor:
    p = torch.tensor(probabilities, dtype=torch.float64)
    return (p / p.sum(-1, keepdim=True)).log()


def _compare(effort: Effort, probabilities: list[list[float]], beta: float, mixing_wins: bool) -> Measurement:
    """Each side draws its n pairs from its own references, and is judged against its own optimum, as the theorems do."""
    generator = torch.Generator().manual_seed(51)
    seeds = effort.choose(100, 1500)
    sizes = log_spaced(effort.choose(100_000, 10_000), 1_000_000, effort.choose(3, 9))
    refs = _references(probabilities)
    single, several = _tabular(seeds, refs[:1], generator), _tabular(seeds, refs, generator)
    several = LinearBandits(single.reward, several.ref_logps, several.weights, single.features, single.theta)
    curves, losses, covers = [], [], []
    for label, problem in (("one reference", single), ("both references", several)):
        regularised, _ = linear_curve(problem, sizes, ReverseKL(), beta=beta, law="mixture", generator=generator)
        slope = fit_slope(sizes, regularised)
        best = exact.solve(problem.reward, problem.ref_logps, ReverseKL(), beta=beta).log_policy
        covers.append(float(bounds.coverage(best, problem.law("mixture")).mean()))
        losses.append(regularised[:, -1])
        curves.append(measured_curve(f"{label}, mean C = {covers[-1]:.3g}", sizes, regularised, slope=slope))
    difference = bootstrap_mean(losses[1] - losses[0])
    ratio = float(losses[1].mean() / losses[0].mean())
    side = "below" if mixing_wins else "above"
    checks = (
        Check(
            "mean coverage, both / one",
            "< 1" if mixing_wins else "> 1",
            covers[1] / covers[0],
            (covers[1] < covers[0]) == mixing_wins,
        ),
        Check("loss at the largest n, both / one", "< 1" if mixing_wins else "> 1", ratio, (ratio < 1) == mixing_wins),
        Check(
            "difference of losses, both − one",
            f"interval {side} 0",
            difference,
            difference.high < 0 if mixing_wins else difference.low > 0,
        ),
    )
    return Measurement(checks, Figure("preference pairs n", "J(π*) − J(π_r̂), own optimum", tuple(curves)))


_COMPLEMENTARY = [[1, 1, 1, 0.01, 0.01, 0.01], [0.01, 0.01, 0.01, 1, 1, 1]]
_CONFLICTING = [[1, 1, 2e-3, 2e-3, 0.1, 0.1], [2e-3, 2e-3, 1, 1, 0.1, 0.1]]


def _claim(
    name: str, statement: str, predicted: str, probabilities: list[list[float]], beta: float, mixing_wins: bool
) -> Claim:
    return Claim(
        name=name,
        group="several references",
        statement=statement,
        status="derived",
        source="docs/theory.md 4; arXiv 2502.01203 argues the first half only",
        predicted=predicted,
        rule="verified if coverage and loss order the same way, with an interval that excludes 0",
        measure=lambda effort: _compare(effort, probabilities, beta, mixing_wins),
        decide=all_hold,
    )


MIXING_HELPS = _claim(
    "mixing-helps-where-references-complete-each-other",
    "References that cover different halves: the coverage constant falls with both, and so does the loss at equal n.",
    "C and loss smaller with both",
    _COMPLEMENTARY,
    0.15,
    True,
)
MIXING_HURTS = _claim(
    "mixing-hurts-where-references-conflict",
    "References that agree only on what neither produces: the escort sits where pairs are rare, C grows, and so does the loss at equal n.",
    "C and loss larger with both",
    _CONFLICTING,
    1.0,
    False,
)
