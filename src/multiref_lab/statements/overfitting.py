"""Do several references reduce overfitting and increase diversity? Measured against each single reference on the same pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from multiref import exact
from multiref._logspace import expectation
from multiref.regularizers import ForwardKL, Regularizer, ReverseKL
from multiref_lab.claim import Check, Claim, Effort, Measurement, Verdict, all_hold
from multiref_lab.estimators import logistic_mle
from multiref_lab.preferences import sample_pairs
from multiref_lab.problems import linear_bandits
from multiref_lab.slopes import bootstrap_mean

__all__ = ["DIVERSITY", "OVERFITTING"]

_BETA, _PAIRS = 0.2, 200


def _worlds(effort: Effort, regularizer: Regularizer, single: Regularizer) -> tuple[Tensor, Tensor]:
    """Overestimate E_π[r̂ − r*] − E_μ[r̂ − r*] and entropy of the trained policy, [3, S] each: reference 0, reference 1, both. Same pairs, same β."""
    generator = torch.Generator().manual_seed(71)
    problem = linear_bandits(effort.choose(200, 4000), prompts=4, completions=8, dimension=6, spread=1.5, generator=generator)
    law = problem.law("mixture")
    fit = logistic_mle(problem.features, sample_pairs(problem.reward, law, _PAIRS, generator=generator), ridge=1e-3)
    error = problem.reward_of(fit.theta) - problem.reward
    kept = fit.theta.norm(dim=-1) < 20
    over, entropy = [], []
    for refs, chosen in ((problem.ref_logps[:1], single), (problem.ref_logps[1:], single), (problem.ref_logps, regularizer)):
        policy = exact.solve(problem.reward + error, refs, chosen, beta=_BETA).log_policy
        over.append((expectation(policy, error) - expectation(law, error)).mean(-1)[kept])
        entropy.append(-expectation(policy, policy).mean(-1)[kept])
    return torch.stack(over), torch.stack(entropy)


def _share(condition: Tensor):
    return bootstrap_mean(condition.double())


def _overfitting(effort: Effort) -> Measurement:
    checks: list[Check] = []
    for name, regularizer, single in (("reverse KL", ReverseKL(), ReverseKL()), ("forward KL", ForwardKL(), ForwardKL())):
        over, _ = _worlds(effort, regularizer, single)
        for baseline, value in (
            ("the better single reference", over[:2].amin(0)),
            ("the average single reference", over[:2].mean(0)),
        ):
            share = _share(over[2] < value)
            checks.append(
                Check(f"{name}: share of problems with less overestimation than {baseline}", "≥ 0.95", share, share.low >= 0.95)
            )
        mean = bootstrap_mean(over[2] - over[:2].mean(0))
        checks.append(Check(f"{name}: mean overestimation, both − average single", "< 0", mean, mean.high < 0))
    return Measurement(
        tuple(checks),
        note=f"{_PAIRS} pairs from the mixture, one reward model for all; overestimation relative to the data's law.",
    )


def _diversity(effort: Effort) -> Measurement:
    checks: list[Check] = []
    for name, regularizer, single in (("reverse KL", ReverseKL(), ReverseKL()), ("forward KL", ForwardKL(), ForwardKL())):
        _, entropy = _worlds(effort, regularizer, single)
        for baseline, value in (
            ("the more diverse single reference", entropy[:2].amax(0)),
            ("the average single reference", entropy[:2].mean(0)),
        ):
            share = _share(entropy[2] > value)
            checks.append(
                Check(f"{name}: share of problems with more entropy than {baseline}", "≥ 0.95", share, share.low >= 0.95)
            )
        mean = bootstrap_mean(entropy[2] - entropy[:2].mean(0))
        checks.append(Check(f"{name}: mean entropy, both − average single, nats", "> 0", mean, mean.low > 0))
    return Measurement(
        tuple(checks),
        note="Entropy of the trained policy. The arithmetic pool is a mixture and gains entropy; the escort is an intersection.",
    )


def _decide(measurement: Measurement) -> Verdict:
    """A universal statement: every share must hold. True of the means only, or of one divergence only, is a matter of reading."""
    if all_hold(measurement) == "verified":
        return "verified"
    means = [check.holds for check in measurement.checks if "mean" in check.what]
    return "convention-dependent" if any(means) else "refuted"


def _claim(name: str, statement: str, measure) -> Claim:
    return Claim(
        name=name,
        group="several references",
        statement=statement,
        status="found",
        source="arXiv 2502.01203, introduction",
        predicted="better than any single reference, in every problem",
        rule="verified if in ≥ 95 % of problems against both baselines; convention-dependent if only some mean difference holds; else refuted",
        measure=measure,
        decide=_decide,
    )


OVERFITTING = _claim(
    "several-references-reduce-overfitting", "Several references reduce overfitting to the learned reward.", _overfitting
)
DIVERSITY = _claim(
    "several-references-increase-diversity", "Several references increase the diversity of the policy.", _diversity
)
