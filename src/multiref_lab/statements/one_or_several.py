"""One reference against several at the same number of pairs: when the coverage constant favours mixing,
and when it does not.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from multiref import bounds
from multiref.regularizers import ReverseKL, check_weights
from multiref.report.figures import Plot
from multiref_lab.claim import Check, Effort, Measurement, claim
from multiref_lab.curves import fitted
from multiref_lab.problems import LinearBandits, linear_bandits
from multiref_lab.procedure import learning_curve, linear_fit
from multiref_lab.stats import bootstrap_mean, log_spaced

_COMPLETIONS = 6
_several = partial(
    claim,
    group="several references",
    source="DERIVED, docs/theory.md 4; arXiv 2502.01203 argues the first half only",
    rule="verified if coverage and loss order the same way, with an interval that excludes 0",
)


def _tabular(seeds: int, ref_logps: Tensor, generator: torch.Generator) -> LinearBandits:
    """A free reward per completion (the last one is the gauge), U(0, 1)-spread truths, the given references [K,
    Y] in every problem.
    """
    eye = torch.eye(_COMPLETIONS, dtype=torch.float64)[:, :-1].unsqueeze(0)
    features = linear_bandits(seeds, features=eye, generator=generator).features
    theta = torch.rand(seeds, _COMPLETIONS - 1, generator=generator, dtype=torch.float64) - 0.5
    refs = ref_logps[:, None, None, :].expand(-1, seeds, 1, -1)
    return LinearBandits(torch.einsum("sxyd,sd->sxy", features, theta), refs, check_weights(None, len(refs)), features, theta)


def _compare(effort: Effort, probabilities: list[list[float]], *, beta: float, mixing_wins: bool) -> Measurement:
    """Each side draws its n pairs from its own references, and is judged against its own optimum, as the theorems do."""
    generator = torch.Generator().manual_seed(51)
    sizes = log_spaced(effort.choose(100_000, 10_000), 1_000_000, effort.choose(3, 9))
    p = torch.tensor(probabilities, dtype=torch.float64)
    refs = (p / p.sum(-1, keepdim=True)).log()
    single, several = (_tabular(effort.choose(100, 1500), refs[:k], generator) for k in (1, 2))
    several = replace(several, reward=single.reward, theta=single.theta)
    curves, losses, covers = [], [], []
    for label, problem in (("one reference", single), ("both references", several)):
        found = learning_curve(problem, sizes, linear_fit(problem), ReverseKL(), beta=beta, law="mixture", generator=generator)
        covers.append(float(bounds.coverage(found.losses[-1].best, problem.law("mixture")).mean()))
        losses.append(found.regularised[:, -1])
        curves.append(fitted(f"{label}, mean C = {covers[-1]:.3g}", sizes, found.regularised)[1])
    difference = bootstrap_mean(losses[1] - losses[0])
    ratio, cover = float(losses[1].mean() / losses[0].mean()), covers[1] / covers[0]
    relation, side = ("< 1", "below") if mixing_wins else ("> 1", "above")
    apart = difference.high < 0 if mixing_wins else difference.low > 0
    checks = (
        Check("mean coverage, both / one", relation, cover, (covers[1] < covers[0]) == mixing_wins),
        Check("loss at the largest n, both / one", relation, ratio, (ratio < 1) == mixing_wins),
        Check("difference of losses, both − one", f"interval {side} 0", difference, apart),
    )
    return Measurement(checks, Plot("preference pairs n", "J(π*) − J(π_r̂), own optimum", curves))


@_several(
    "mixing-helps-where-references-complete-each-other",
    statement="References that cover different halves: the coverage constant falls with both, and so does the loss at equal n.",
    predicts="C and loss smaller with both",
)
def mixing_helps(effort: Effort) -> Measurement:
    return _compare(effort, [[1, 1, 1, 0.01, 0.01, 0.01], [0.01, 0.01, 0.01, 1, 1, 1]], beta=0.15, mixing_wins=True)


@_several(
    "mixing-hurts-where-references-conflict",
    statement="References that agree only on what neither produces: the escort sits where pairs are rare, C grows, "
    "and so does the loss at equal n.",
    predicts="C and loss larger with both",
)
def mixing_hurts(effort: Effort) -> Measurement:
    return _compare(effort, [[1, 1, 2e-3, 2e-3, 0.1, 0.1], [2e-3, 2e-3, 1, 1, 0.1, 0.1]], beta=1.0, mixing_wins=False)
