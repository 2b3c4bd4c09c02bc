"""Do several references reduce overfitting and increase diversity? Measured against each single reference on the same pairs."""

from functools import partial

import torch
from torch import Tensor

from multiref import exact
from multiref.divergences import expectation
from multiref.regularizers import ForwardKL, Regularizer, ReverseKL
from multiref_lab.claim import Check, Effort, Measurement, Rule, Verdict, claim
from multiref_lab.estimators import logistic_mle
from multiref_lab.preferences import sample_pairs
from multiref_lab.problems import linear_bandits
from multiref_lab.stats import bootstrap_mean

_BETA, _PAIRS = 0.2, 200
_REGULARIZERS: dict[str, Regularizer] = {"reverse KL": ReverseKL(), "forward KL": ForwardKL()}


def _a_matter_of_reading(measurement: Measurement) -> Verdict:
    """Of a universal statement: true of the means only, or of one divergence only."""
    means = [check.holds for check in measurement.checks if "mean" in check.what]
    return "convention-dependent" if any(means) else "refuted"


_several = partial(
    claim,
    group="several references",
    order=2,
    source="FOUND, arXiv 2502.01203, introduction",
    predicts="better than any single reference, in every problem",
    rule=Rule(
        "verified if in ≥ 95 % of problems against both baselines; convention-dependent if only some mean difference holds; "
        "else refuted",
        _a_matter_of_reading,
    ),
)


def _worlds(effort: Effort, regularizer: Regularizer) -> dict[str, Tensor]:
    """[3, S] each, for reference 0, reference 1 and both, on the same pairs at the same β.

    The overestimate E_π[r̂ − r*] − E_μ[r̂ − r*], and the entropy of the trained policy.
    """
    generator = torch.Generator().manual_seed(71)
    problem = linear_bandits(effort.choose(200, 4000), prompts=4, completions=8, dimension=6, spread=1.5, generator=generator)
    law = problem.law("mixture")
    fit = logistic_mle(problem.features, sample_pairs(problem.reward, law, _PAIRS, generator=generator), ridge=1e-3)
    error = problem.reward_of(fit.theta) - problem.reward
    kept = fit.theta.norm(dim=-1) < 20
    over, entropy = [], []
    for refs in (problem.ref_logps[:1], problem.ref_logps[1:], problem.ref_logps):
        policy = exact.solve(problem.reward + error, refs, regularizer, beta=_BETA).log_policy
        over.append((expectation(policy, error) - expectation(law, error)).mean(-1)[kept])
        entropy.append(-expectation(policy, policy).mean(-1)[kept])
    return {"overestimation": torch.stack(over), "entropy": torch.stack(entropy)}


def _against_singles(effort: Effort, quantity: str, *, sign: int, words: tuple[str, str], unit: str = "") -> list[Check]:
    """Both references against the best single one and the average one; sign −1: less of the quantity is better.

    words: what is better, and what the best single reference is called.
    """
    checks = []
    for name, regularizer in _REGULARIZERS.items():
        found = _worlds(effort, regularizer)[quantity]
        both, singles = sign * found[2], sign * found[:2]
        for rival, level in ((words[1], singles.amax(0)), ("average", singles.mean(0))):
            share = bootstrap_mean((both > level).double())
            what = f"{name}: share of problems with {words[0]} than the {rival} single reference"
            checks.append(Check(what, "≥ 0.95", share, share.low >= 0.95))
        mean = bootstrap_mean(found[2] - found[:2].mean(0))
        what = f"{name}: mean {quantity}, both − average single{unit}"
        checks.append(Check(what, "> 0" if sign > 0 else "< 0", mean, mean.low > 0 if sign > 0 else mean.high < 0))
    return checks


@_several("several-references-reduce-overfitting", statement="Several references reduce overfitting to the learned reward.")
def overfitting(effort: Effort) -> Measurement:
    note = f"{_PAIRS} pairs from the mixture, one reward model for all; overestimation relative to the data's law."
    return Measurement(_against_singles(effort, "overestimation", sign=-1, words=("less overestimation", "better")), note=note)


@_several("several-references-increase-diversity", statement="Several references increase the diversity of the policy.")
def diversity(effort: Effort) -> Measurement:
    note = "Entropy of the trained policy. The arithmetic pool is a mixture and gains entropy; the escort is an intersection."
    words = ("more entropy", "more diverse")
    return Measurement(_against_singles(effort, "entropy", sign=1, words=words, unit=", nats"), note=note)
