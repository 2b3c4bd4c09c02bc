"""One reference against several at the same pairs: when the coverage constant favours mixing and when it does not,
whether several references reduce overfitting and increase diversity, and what it costs to draw the pairs from them.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from multiref import bounds, exact
from multiref.divergences import disagreement, expectation, kl
from multiref.regularizers import ForwardKL, Regularizer, ReverseKL, check_weights
from multiref.report.figures import Curve, Plot
from multiref.training.online import sequence_logps
from multiref_lab.claim import Check, Effort, Findings, Measurement, Rule, Verdict, at_least, claim, exactly, near
from multiref_lab.estimators import logistic_mle
from multiref_lab.preferences import sample_pairs
from multiref_lab.problems import LinearBandits, linear_bandits, random_bandits, random_language
from multiref_lab.procedure import learning_curve, linear_fit
from multiref_lab.stats import bootstrap_mean, fitted, log_spaced

_COMPLETIONS = 6
_BETA, _PAIRS = 0.2, 200
_REGULARIZERS: dict[str, Regularizer] = {"reverse KL": ReverseKL(), "forward KL": ForwardKL()}
_mixing = partial(
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


def _compare(effort: Effort, probabilities: list[list[float]], *, beta: float, mixing_wins: bool) -> Findings:
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
    yield Check("mean coverage, both / one", relation, cover, (cover < 1) == mixing_wins)
    yield Check("loss at the largest n, both / one", relation, ratio, (ratio < 1) == mixing_wins)
    yield Check("difference of losses, both − one", f"interval {side} 0", difference, apart)
    yield Plot("preference pairs n", "J(π*) − J(π_r̂), own optimum", curves)


mixing_helps = _mixing(
    "mixing-helps-where-references-complete-each-other",
    statement="References that cover different halves: the coverage constant falls with both, and so does the loss at equal n.",
    predicts="C and loss smaller with both",
)(lambda effort: _compare(effort, [[1, 1, 1, 0.01, 0.01, 0.01], [0.01, 0.01, 0.01, 1, 1, 1]], beta=0.15, mixing_wins=True))


mixing_hurts = _mixing(
    "mixing-hurts-where-references-conflict",
    statement="References that agree only on what neither produces: the escort sits where pairs are rare, C grows, "
    "and so does the loss at equal n.",
    predicts="C and loss larger with both",
)(lambda effort: _compare(effort, [[1, 1, 2e-3, 2e-3, 0.1, 0.1], [2e-3, 2e-3, 1, 1, 0.1, 0.1]], beta=1.0, mixing_wins=False))


def _a_matter_of_reading(measurement: Measurement) -> Verdict:
    """Of a universal statement: true of the means only, or of one divergence only."""
    means = [check.holds for check in measurement.checks if "mean" in check.what]
    return "convention-dependent" if any(means) else "refuted"


_universal = partial(
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


def _against_singles(effort: Effort, quantity: str, *, sign: int, words: tuple[str, str], unit: str = "") -> Findings:
    """Both references against the best single one and the average one; sign −1: less of the quantity is better.

    words: what is better, and what the best single reference is called.
    """
    for name, regularizer in _REGULARIZERS.items():
        found = _worlds(effort, regularizer)[quantity]
        both, singles = sign * found[2], sign * found[:2]
        for rival, level in ((words[1], singles.amax(0)), ("average", singles.mean(0))):
            share = bootstrap_mean((both > level).double())
            yield at_least(f"{name}: share of problems with {words[0]} than the {rival} single reference", 0.95, share)
        mean = bootstrap_mean(found[2] - found[:2].mean(0))
        what = f"{name}: mean {quantity}, both − average single{unit}"
        yield Check(what, "> 0" if sign > 0 else "< 0", mean, mean.low > 0 if sign > 0 else mean.high < 0)


@_universal("several-references-reduce-overfitting", statement="Several references reduce overfitting to the learned reward.")
def overfitting(effort: Effort) -> Findings:
    yield from _against_singles(effort, "overestimation", sign=-1, words=("less overestimation", "better"))
    yield f"{_PAIRS} pairs from the mixture, one reward model for all; overestimation relative to the data's law."


@_universal("several-references-increase-diversity", statement="Several references increase the diversity of the policy.")
def diversity(effort: Effort) -> Findings:
    yield from _against_singles(effort, "entropy", sign=1, words=("more entropy", "more diverse"), unit=", nats")
    yield "Entropy of the trained policy. The arithmetic pool is a mixture and gains entropy; the escort is an intersection."


@claim(
    "sampling-price-exponential-in-length",
    group="several references",
    order=1,
    statement="sup escort/mixture ≤ 1/F, and 1/F grows exponentially in completion length, at about a quarter of the KL for "
    "two references at ½.",
    source="DERIVED, docs/theory.md 4 and 5",
    predicts="no violation; log 1/F linear in length; −log F / KL ≈ 0.25",
)
def price_in_length(effort: Effort) -> Findings:
    generator, weights = torch.Generator().manual_seed(61), (0.5, 0.3, 0.2)
    seeds, longest = effort.choose((40, 5), (300, 8))
    first = random_language(4, longest, seeds, generator=generator, spread=1.0)
    moves = [torch.randn(level.shape, generator=generator, dtype=torch.float64) for level in first]
    second = [(level + 0.5 * move).log_softmax(-1) for level, move in zip(first, moves)]
    log_price, log_cover, divergence = [], [], []
    for steps in range(1, longest + 1):
        pair = torch.stack([sequence_logps(model[:steps]) for model in (first, second)])  # [2, S, V^steps]
        log_price.append(disagreement(pair))
        log_cover.append(bounds.sampling_coverage(pair).log())
        divergence.append(0.5 * (kl(pair[0], pair[1]) + kl(pair[1], pair[0])))
    price, cover = torch.stack(log_price, -1), torch.stack(log_cover, -1)
    length = torch.arange(1.0, longest + 1, dtype=torch.float64)
    straight = float(torch.corrcoef(torch.stack((length, price.mean(0))))[0, 1])
    bandits = random_bandits(
        effort.choose(500, 5000), completions=10, references=3, weights=weights, spread=2.0, generator=generator
    )
    limit = disagreement(bandits.ref_logps, weights).exp() * (1 + 1e-12)
    above = (bounds.sampling_coverage(bandits.ref_logps, weights) > limit).sum() + (cover > price + 1e-12).sum()
    per_token, cover_token = (bootstrap_mean((each[:, -1] - each[:, 0]) / (longest - 1)) for each in (price, cover))
    yield exactly("sup escort/mixture above 1/F, random instances", 0, float(above))
    yield at_least("growth of log 1/F per token, nats", 0.0, per_token)
    yield at_least("growth of log sup(escort/mixture) per token, nats", 0.0, cover_token)
    yield at_least("correlation of mean log 1/F with length", 0.99, straight)
    ratio = bootstrap_mean(price[:, -1] / divergence[-1])
    yield near("−log F / KL at w = ½ (symmetrised KL, whole completions)", 0.25, ratio, 0.03)
    curves = (
        Curve("1/F (mean of logs)", length.tolist(), price.mean(0).exp().tolist(), "bound"),
        Curve("largest escort / mixture (mean of logs)", length.tolist(), cover.mean(0).exp().tolist()),
    )
    yield Plot("tokens per completion", "price", curves, log_x=False)
