"""Rates of reward learning, for both divergences: how the regularised and the plain-reward losses fall with the number of
pairs.

A fixed finite class would show an exponential instead, so slopes are measured in a linear class,
and in a finite class refined like n^(−1/2), for which the bounds hold with their real constants (R = 1, |R| = 2,000).
"""

from functools import partial

import torch
from torch import Tensor

from multiref import bounds
from multiref.regularizers import ForwardKL, Regularizer, ReverseKL
from multiref.report.figures import Curve, Plot
from multiref_lab.claim import Check, Effort, Findings, claim, exactly, near
from multiref_lab.problems import Bandits, linear_bandits, random_bandits, refined_class
from multiref_lab.procedure import LearningCurve, Loss, finite_fit, learning_curve, linear_fit
from multiref_lab.stats import along, fitted, flat, log_spaced

_BETA, _WEIGHTS, _CLASS_SIZE = 1 / 3, (0.6, 0.4), 2000
_LAW = {"reverse KL": "escort", "forward KL": "mixture"}
_reverse = partial(claim, group="reverse KL")
_forward = partial(claim, group="forward KL")
_SLOPE = "verified if every slope is within 0.1 of it"
_PROCEDURE = "verified if the slope is within 0.15 and no run is above the bound"


def _regularizer(name: str) -> Regularizer:
    return ReverseKL(_WEIGHTS) if name == "reverse KL" else ForwardKL(_WEIGHTS)


def _linear(name: str, effort: Effort) -> LearningCurve:
    generator = torch.Generator().manual_seed(21)
    problem = linear_bandits(effort.choose(60, 2000), dimension=5, weights=_WEIGHTS, generator=generator)
    sizes = log_spaced(effort.choose(3_000, 300), effort.choose(30_000, 100_000), effort.choose(4, 11))
    fit, regularizer = linear_fit(problem), _regularizer(name)
    return learning_curve(problem, sizes, fit, regularizer, beta=_BETA, law=_LAW[name], generator=generator)


def _coverage(problem: Bandits, loss: Loss, regularizer: Regularizer, law: Tensor) -> float:
    """The largest coverage constant that the bounds need, over the seeds."""
    if regularizer.alpha == 1:
        pool = regularizer.pool(problem.ref_logps)
        return float(bounds.path_coverage(problem.reward, loss.estimate, pool, law, beta=_BETA).max())
    return float(bounds.coverage(torch.maximum(loss.best, loss.log_policy), law).max())


def _refined(name: str, effort: Effort) -> tuple[LearningCurve, list[Curve]]:
    """The finite class refined with n, and the bounds at its own coverage (the largest over the seeds)."""
    generator = torch.Generator().manual_seed(22)
    problem = random_bandits(effort.choose(20, 150), completions=8, weights=_WEIGHTS, generator=generator)
    sizes = log_spaced(effort.choose(3_000, 1_000), effort.choose(30_000, 100_000), effort.choose(3, 7))
    regularizer, law, count = _regularizer(name), problem.law(_LAW[name]), effort.choose(300, _CLASS_SIZE)
    classes = [refined_class(problem.reward, count, 8 / size**0.5, generator=generator) for size in sizes]
    found = learning_curve(problem, sizes, finite_fit(classes), regularizer, beta=_BETA, law=_LAW[name], generator=generator)
    given = {"coverage": max(_coverage(problem, each, regularizer, law) for each in found.losses), "reward_max": 1.0}
    given |= {"class_size": _CLASS_SIZE, "samples": 1}
    if name == "reverse KL":
        lines = {
            "Theorem 5.2 (found)": bounds.reverse_kl_5_2(beta=_BETA, **given),
            "R1 (derived)": bounds.reverse_kl_suboptimality(beta=_BETA, **given),
        }
    else:
        lines = {
            "Theorem 6.2 (found)": bounds.forward_kl_6_2(**given),
            "F1 (derived)": bounds.forward_kl_slow(**given),
            "F2 (derived)": bounds.forward_kl_fast(beta=_BETA, **given),
        }
    drawn = [along(label, bound, sizes) for label, bound in lines.items()]
    return found, [*drawn, flat("trivial range", sizes, next(iter(lines.values())).trivial)]


def _regularised(name: str, effort: Effort) -> Findings:
    linear, (refined, lines) = _linear(name, effort), _refined(name, effort)
    slope, curve = fitted("linear class", linear.sizes, linear.regularised)
    second, other = fitted("finite class refined with n", refined.sizes, refined.regularised)
    yield near("slope, linear class", -1, slope, effort.choose(0.2, 0.1))
    yield near("slope, refined finite class", -1, second, effort.choose(0.2, 0.1))
    yield Plot("preference pairs n", f"J(π*) − J(π_r̂), {name}", (curve, other, *lines))


def _plain(name: str, effort: Effort) -> Findings:
    linear = _linear(name, effort)
    slope, curve = fitted("linear class", linear.sizes, linear.plain)
    yield near("slope, linear class", -0.5, slope, effort.choose(0.2, 0.1))
    yield Plot("preference pairs n", f"|E_π* r* − E_π_r̂ r*|, {name}, same β", (curve,))
    yield "Against the optimum of the same strength:"
    yield "the sign of the first-order error is not controlled, so the square root stays."


def _procedure(name: str, effort: Effort) -> Findings:
    refined, lines = _refined(name, effort)
    slope, curve = fitted("maximum likelihood in a finite class, plugged in", refined.sizes, refined.regularised)
    yield near("slope", -1, slope, effort.choose(0.25, 0.15))
    printed = torch.tensor(lines[0].y, dtype=torch.float64)
    yield exactly("runs above the printed bound", 0, int((refined.regularised > printed).sum()))
    yield Plot("preference pairs n", f"J(π*) − J(π_r̂), {name}", (curve, *lines))
    yield "Our reading of the paper's algorithm, whose text is not available."


reverse_rate = _reverse(
    "reverse-kl-suboptimality-rate",
    statement="Reverse KL: sub-optimality in the regularised objective falls like 1/n.",
    source="FOUND, arXiv 2502.01203, Theorem 5.2 and Remark 5.4",
    predicts="slope −1",
    rule=_SLOPE,
)(lambda effort: _regularised("reverse KL", effort))


reverse_plain = _reverse(
    "reverse-kl-plain-reward-rate",
    statement="Reverse KL: the plain-reward gap at the same strength falls like 1/√n.",
    source="FOUND, arXiv 2502.01203, Theorem 5.3 (rate); R2 derived",
    predicts="slope −½",
    rule=_SLOPE,
)(lambda effort: _plain("reverse KL", effort))


reverse_procedure = _reverse(
    "reverse-kl-procedure",
    order=2,
    statement="The paper's procedure end to end, reverse KL: maximum-likelihood reward from pairs, plugged into the closed "
    "form, is within Theorem 5.2.",
    source="FOUND, arXiv 2502.01203, section 5 and appendix A (our reading)",
    predicts="slope −1, no run above the printed bound",
    rule=_PROCEDURE,
)(lambda effort: _procedure("reverse KL", effort))


forward_rate = _forward(
    "forward-kl-suboptimality-rate",
    statement="Forward KL: sub-optimality in the regularised objective falls like 1/n at fixed β (the printed −½ is the "
    "proof's).",
    source="DERIVED, docs/theory.md 4, F2",
    predicts="slope −1",
    rule=_SLOPE,
)(lambda effort: _regularised("forward KL", effort))


forward_plain = _forward(
    "forward-kl-plain-reward-rate",
    statement="Forward KL: the plain-reward gap at the same strength falls like 1/√n.",
    source="FOUND, arXiv 2502.01203, Remark 6.4 (rate)",
    predicts="slope −½",
    rule=_SLOPE,
)(lambda effort: _plain("forward KL", effort))


forward_procedure = _forward(
    "forward-kl-procedure",
    order=2,
    statement="The paper's procedure end to end, forward KL: maximum-likelihood reward from pairs, plugged into the closed "
    "form, is within Theorem 6.2.",
    source="FOUND, arXiv 2502.01203, section 6 and appendix A (our reading)",
    predicts="slope −1 (not the printed −½), no run above the printed bound",
    rule=_PROCEDURE,
)(lambda effort: _procedure("forward KL", effort))


@_forward(
    "forward-kl-learns-slower",
    order=2,
    statement="Reverse KL learns faster than forward KL: 1/n against 1/√n in the regularised objective.",
    source="FOUND, arXiv 2502.01203, Remarks 5.4 and 6.4, read as rates of the problems",
    predicts="forward slope −½, difference of slopes ½",
    rule="verified if all three hold, else refuted",
)
def forward_slower(effort: Effort) -> Findings:
    losses = {name: _linear(name, effort) for name in ("reverse KL", "forward KL")}
    (reverse, first), (forward, second) = (fitted(name, each.sizes, each.regularised) for name, each in losses.items())
    difference = forward.value - reverse.value
    last = {name: each.regularised[:, -1].mean() for name, each in losses.items()}
    ratio = float(last["forward KL"] / last["reverse KL"])
    yield Check("forward slope", "−0.5 if the printed rate is the problem's", forward, forward.high > -0.75)
    yield Check("forward slope − reverse slope", "+0.5 if so", difference, difference > 0.25)
    yield Check("forward / reverse loss at the largest n", "> 1 if so", ratio, ratio > 1)
    yield Plot("preference pairs n", "J(π*) − J(π_r̂)", (first, second))
    yield "Both fall like 1/n at fixed β: the printed 1/√n of forward KL is the proof's, not the problem's."
