"""Rates of reward learning, for both divergences: how the regularised and the plain-reward losses fall with the number of pairs.

A fixed finite class would show an exponential instead, so slopes are measured in a linear class, and in a finite class refined like n^(−1/2),
for which the bounds hold with their real constants (R = 1, |R| = 2,000).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from multiref import bounds, exact
from multiref.regularizers import ForwardKL, Regularizer, ReverseKL
from multiref_lab.claim import Check, Claim, Curve, Effort, Figure, Measurement, all_hold, near
from multiref_lab.problems import Bandits, linear_bandits, random_bandits, refined_class
from multiref_lab.procedure import Loss, finite_class_curve, linear_curve
from multiref_lab.slopes import fit_slope, log_spaced, measured_curve

__all__ = [
    "FORWARD_KL_PLAIN",
    "FORWARD_KL_PROCEDURE",
    "FORWARD_KL_RATE",
    "FORWARD_KL_SLOWER",
    "REVERSE_KL_PLAIN",
    "REVERSE_KL_PROCEDURE",
    "REVERSE_KL_RATE",
]

_BETA, _WEIGHTS, _CLASS_SIZE = 1 / 3, (0.6, 0.4), 2000
_LAW = {"reverse KL": "escort", "forward KL": "mixture"}


@dataclass(frozen=True)
class _Curves:
    sizes: list[int]
    regularised: Tensor
    plain: Tensor


def _regularizer(name: str) -> Regularizer:
    return ReverseKL(_WEIGHTS) if name == "reverse KL" else ForwardKL(_WEIGHTS)


def _linear(name: str, effort: Effort) -> _Curves:
    generator = torch.Generator().manual_seed(21)
    problem = linear_bandits(effort.choose(60, 2000), dimension=5, weights=_WEIGHTS, generator=generator)
    sizes = log_spaced(effort.choose(3_000, 300), effort.choose(30_000, 100_000), effort.choose(4, 11))
    return _Curves(sizes, *linear_curve(problem, sizes, _regularizer(name), beta=_BETA, law=_LAW[name], generator=generator))


def _coverage(problem: Bandits, loss: Loss, regularizer: Regularizer, law: Tensor) -> float:
    """The largest coverage constant that the bounds need, over the seeds."""
    if regularizer.alpha == 1:
        return float(
            bounds.path_coverage(problem.reward, loss.estimate, regularizer.pool(problem.ref_logps), law, beta=_BETA).max()
        )
    best = exact.solve(problem.reward, problem.ref_logps, regularizer, beta=_BETA).log_policy
    return float(bounds.coverage(torch.maximum(best, loss.log_policy), law).max())


def _refined(name: str, effort: Effort) -> tuple[_Curves, list[Curve]]:
    """The finite class refined with n, and the bounds at its own coverage (the largest over the seeds)."""
    generator = torch.Generator().manual_seed(22)
    problem = random_bandits(effort.choose(20, 150), completions=8, weights=_WEIGHTS, generator=generator)
    sizes = log_spaced(effort.choose(3_000, 1_000), effort.choose(30_000, 100_000), effort.choose(3, 7))
    regularizer, law = _regularizer(name), problem.law(_LAW[name])
    classes = [
        refined_class(problem.reward, effort.choose(300, _CLASS_SIZE), 8 / size**0.5, generator=generator) for size in sizes
    ]
    losses = finite_class_curve(problem, classes, sizes, regularizer, beta=_BETA, law=_LAW[name], generator=generator)
    curves = _Curves(
        sizes, torch.stack([each.regularised for each in losses], -1), torch.stack([each.plain for each in losses], -1)
    )
    cover = max(_coverage(problem, each, regularizer, law) for each in losses)
    given = {"coverage": cover, "reward_max": 1.0, "class_size": _CLASS_SIZE}
    if name == "reverse KL":
        lines = {
            "Theorem 5.2 (found)": bounds.reverse_kl_5_2(samples=1, beta=_BETA, **given),
            "R1 (derived)": bounds.reverse_kl_suboptimality(samples=1, beta=_BETA, **given),
        }
    else:
        lines = {
            "Theorem 6.2 (found)": bounds.forward_kl_6_2(samples=1, **given),
            "F1 (derived)": bounds.forward_kl_slow(samples=1, **given),
            "F2 (derived)": bounds.forward_kl_fast(samples=1, beta=_BETA, **given),
        }
    x = tuple(float(n) for n in sizes)
    drawn = [Curve(label, x, tuple(b.at(samples=n).value for n in x), "bound") for label, b in lines.items()]
    trivial = next(iter(lines.values())).trivial
    return curves, [*drawn, Curve("trivial range", x, (trivial,) * len(x), "trivial")]


def _regularised(name: str, effort: Effort) -> Measurement:
    linear, (refined, lines) = _linear(name, effort), _refined(name, effort)
    slope, second = fit_slope(linear.sizes, linear.regularised), fit_slope(refined.sizes, refined.regularised)
    curves = (
        measured_curve("linear class", linear.sizes, linear.regularised, slope=slope),
        measured_curve("finite class refined with n", refined.sizes, refined.regularised, slope=second),
        *lines,
    )
    tolerance = effort.choose(0.2, 0.1)
    return Measurement(
        (near("slope, linear class", -1, slope, tolerance), near("slope, refined finite class", -1, second, tolerance)),
        Figure("preference pairs n", f"J(π*) − J(π_r̂), {name}", curves),
    )


def _plain(name: str, effort: Effort) -> Measurement:
    linear = _linear(name, effort)
    slope = fit_slope(linear.sizes, linear.plain)
    curves = [measured_curve("linear class", linear.sizes, linear.plain, slope=slope)]
    return Measurement(
        (near("slope, linear class", -0.5, slope, effort.choose(0.2, 0.1)),),
        Figure("preference pairs n", f"|E_π* r* − E_π_r̂ r*|, {name}, same β", tuple(curves)),
        note="Against the optimum of the same strength: the sign of the first-order error is not controlled, so the square root stays.",
    )


def _procedure(name: str, effort: Effort) -> Measurement:
    refined, lines = _refined(name, effort)
    slope = fit_slope(refined.sizes, refined.regularised)
    printed = lines[0]
    below = sum(int((refined.regularised[:, i] > printed.y[i]).sum()) for i in range(len(refined.sizes)))
    figure = Figure(
        "preference pairs n",
        f"J(π*) − J(π_r̂), {name}",
        (
            measured_curve("maximum likelihood in a finite class, plugged in", refined.sizes, refined.regularised, slope=slope),
            *lines,
        ),
    )
    checks: tuple[Check, ...] = (
        near("slope", -1, slope, effort.choose(0.25, 0.15)),
        Check("runs above the printed bound", "0", float(below), below == 0),
    )
    return Measurement(checks, figure, note="Our reading of the paper's algorithm, whose text is not available.")


def _slower(effort: Effort) -> Measurement:
    reverse, forward = _linear("reverse KL", effort), _linear("forward KL", effort)
    slopes = fit_slope(reverse.sizes, reverse.regularised), fit_slope(forward.sizes, forward.regularised)
    figure = Figure(
        "preference pairs n",
        "J(π*) − J(π_r̂)",
        (
            measured_curve("reverse KL", reverse.sizes, reverse.regularised, slope=slopes[0]),
            measured_curve("forward KL", forward.sizes, forward.regularised, slope=slopes[1]),
        ),
    )
    difference = slopes[1].value - slopes[0].value
    ratio = float(forward.regularised[:, -1].mean() / reverse.regularised[:, -1].mean())
    checks = (
        Check("forward slope", "−0.5 if the printed rate is the problem's", slopes[1], slopes[1].high > -0.75),
        Check("forward slope − reverse slope", "+0.5 if so", difference, difference > 0.25),
        Check("forward / reverse loss at the largest n", "> 1 if so", ratio, ratio > 1),
    )
    return Measurement(
        checks, figure, note="Both fall like 1/n at fixed β: the printed 1/√n of forward KL is the proof's, not the problem's."
    )


def _claim(
    name: str, status, statement: str, source: str, predicted: str, measure, rule="verified if every slope is within 0.1 of it"
) -> Claim:
    group = "reverse KL" if name.startswith("reverse") else "forward KL"
    return Claim(name, group, statement, status, source, predicted, rule, measure, all_hold)


REVERSE_KL_RATE = _claim(
    "reverse-kl-suboptimality-rate",
    "found",
    "Reverse KL: sub-optimality in the regularised objective falls like 1/n.",
    "arXiv 2502.01203, Theorem 5.2 and Remark 5.4",
    "slope −1",
    lambda effort: _regularised("reverse KL", effort),
)
REVERSE_KL_PLAIN = _claim(
    "reverse-kl-plain-reward-rate",
    "found",
    "Reverse KL: the plain-reward gap at the same strength falls like 1/√n.",
    "arXiv 2502.01203, Theorem 5.3 (rate); R2 derived",
    "slope −½",
    lambda effort: _plain("reverse KL", effort),
)
FORWARD_KL_RATE = _claim(
    "forward-kl-suboptimality-rate",
    "derived",
    "Forward KL: sub-optimality in the regularised objective falls like 1/n at fixed β (the printed −½ is the proof's).",
    "docs/theory.md 4, F2",
    "slope −1",
    lambda effort: _regularised("forward KL", effort),
)
FORWARD_KL_PLAIN = _claim(
    "forward-kl-plain-reward-rate",
    "found",
    "Forward KL: the plain-reward gap at the same strength falls like 1/√n.",
    "arXiv 2502.01203, Remark 6.4 (rate)",
    "slope −½",
    lambda effort: _plain("forward KL", effort),
)
REVERSE_KL_PROCEDURE = _claim(
    "reverse-kl-procedure",
    "found",
    "The paper's procedure end to end, reverse KL: maximum-likelihood reward from pairs, plugged into the closed form, is within Theorem 5.2.",
    "arXiv 2502.01203, section 5 and appendix A (our reading)",
    "slope −1, no run above the printed bound",
    lambda effort: _procedure("reverse KL", effort),
    "verified if the slope is within 0.15 and no run is above the bound",
)
FORWARD_KL_PROCEDURE = _claim(
    "forward-kl-procedure",
    "found",
    "The paper's procedure end to end, forward KL: maximum-likelihood reward from pairs, plugged into the closed form, is within Theorem 6.2.",
    "arXiv 2502.01203, section 6 and appendix A (our reading)",
    "slope −1 (not the printed −½), no run above the printed bound",
    lambda effort: _procedure("forward KL", effort),
    "verified if the slope is within 0.15 and no run is above the bound",
)
FORWARD_KL_SLOWER = Claim(
    "forward-kl-learns-slower",
    "forward KL",
    "Reverse KL learns faster than forward KL: 1/n against 1/√n in the regularised objective.",
    "found",
    "arXiv 2502.01203, Remarks 5.4 and 6.4, read as rates of the problems",
    "forward slope −½, difference of slopes ½",
    "verified if all three hold, else refuted",
    _slower,
    all_hold,
)
