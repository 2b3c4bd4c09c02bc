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


def _worlds(effort: Effort, regularizer: Regularizer) -> tuple[Tensor, Tensor]:
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
    return torch.stack(over), torch.stack(entropy)


def _share(what: str, better: Tensor) -> Check:
    share = bootstrap_mean(better.double())
    return Check(what, "≥ 0.95", share, share.low >= 0.95)


@_several("several-references-reduce-overfitting", statement="Several references reduce overfitting to the learned reward.")
def overfitting(effort: Effort) -> Measurement:
    checks = []
    for name, regularizer in _REGULARIZERS.items():
        over, _ = _worlds(effort, regularizer)
        less = f"{name}: share of problems with less overestimation than the"
        mean = bootstrap_mean(over[2] - over[:2].mean(0))
        checks += [
            _share(f"{less} better single reference", over[2] < over[:2].amin(0)),
            _share(f"{less} average single reference", over[2] < over[:2].mean(0)),
            Check(f"{name}: mean overestimation, both − average single", "< 0", mean, mean.high < 0),
        ]
    note = f"{_PAIRS} pairs from the mixture, one reward model for all; overestimation relative to the data's law."
    return Measurement(checks, note=note)


@_several("several-references-increase-diversity", statement="Several references increase the diversity of the policy.")
def diversity(effort: Effort) -> Measurement:
    checks = []
    for name, regularizer in _REGULARIZERS.items():
        _, entropy = _worlds(effort, regularizer)
        more = f"{name}: share of problems with more entropy than the"
        mean = bootstrap_mean(entropy[2] - entropy[:2].mean(0))
        checks += [
            _share(f"{more} more diverse single reference", entropy[2] > entropy[:2].amax(0)),
            _share(f"{more} average single reference", entropy[2] > entropy[:2].mean(0)),
            Check(f"{name}: mean entropy, both − average single, nats", "> 0", mean, mean.low > 0),
        ]
    note = "Entropy of the trained policy. The arithmetic pool is a mixture and gains entropy; the escort is an intersection."
    return Measurement(checks, note=note)
