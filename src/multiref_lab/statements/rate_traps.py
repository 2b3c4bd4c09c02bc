"""The two traps behind rate experiments: a fixed finite class identifies the truth exponentially fast,
and on one instance plain-reward regret falls too fast; the worst case over instances is what a theorem is about.

For the worst case two arms are compared n times, P(first wins) = σ(Δ), estimated log-odds kept in [−3, 3];
every expectation is a sum over the number of wins.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from multiref.report import Estimate
from multiref.report.figures import Curve, Plot
from multiref_lab.claim import Effort, Findings, at_most, claim, exactly, near
from multiref_lab.estimators import finite_class_mle
from multiref_lab.preferences import sample_pairs
from multiref_lab.problems import random_bandits, random_class
from multiref_lab.stats import fit_slope, log_spaced

_CLASS_SIZE, _COMPLETIONS = 2000, 12
_LARGEST = 3.0


@claim(
    "finite-class-exponential-regime",
    group="reverse KL",
    order=3,
    statement="A fixed finite class (2,000 rewards on 12 completions) identifies the truth exponentially fast: "
    "no rate in n can be fitted there.",
    source="DERIVED, docs/theory.md 4",
    predicts="no wrong pick at n = 10⁴; slope steeper than −2 on the way there",
)
def exponential_regime(effort: Effort) -> Findings:
    generator = torch.Generator().manual_seed(41)
    runs = effort.choose(200, 10_000)
    problem = random_bandits(1, completions=_COMPLETIONS, generator=generator)
    candidates = random_class(problem.reward, _CLASS_SIZE, generator=generator)[0]
    reward = problem.reward.expand(runs, -1, -1)
    sizes = [*log_spaced(100, 3_000, effort.choose(4, 9)), 10_000, 100_000]
    wrong = []
    for size in sizes:
        counts = sample_pairs(reward, torch.zeros_like(reward).log_softmax(-1), size, generator=generator)
        wrong.append(float((finite_class_mle(candidates, counts) != 0).double().mean()))
    seen = [(float(n), p) for n, p in zip(sizes, wrong) if p > 0]
    before, last = torch.tensor(seen[-2:], dtype=torch.float64).log()
    slope = float((last[1] - before[1]) / (last[0] - before[0]))
    curves = (
        Curve("share of runs that pick a wrong reward", [n for n, _ in seen], [p for _, p in seen]),
        Curve("1/n through the first point", (100.0, 10_000.0), (seen[0][1], seen[0][1] / 100), "theory"),
    )
    yield exactly("share of wrong picks at n = 10⁴", 0, wrong[sizes.index(10_000)])
    yield exactly("share of wrong picks at n = 10⁵", 0, wrong[-1])
    yield at_most("log-log slope of the last measured stretch (a power law would keep −½ or −1)", -2.0, slope)
    yield Plot("preference pairs n", "share of wrong picks", curves)
    fits = f"{runs * len(sizes):,} fits over {_CLASS_SIZE:,} candidates"
    yield f"{fits}; slopes are therefore measured in linear or refined classes."


def _wins(n: int, gap: Tensor) -> tuple[Tensor, Tensor]:
    """[G] → estimated gaps [W] and their probabilities [G, W], W the win counts within ten standard deviations of some gap's
    mean.
    """
    reach = 5 * n**0.5
    low, high = max(0, int(n * torch.sigmoid(gap.min()) - reach)), min(n, int(n * torch.sigmoid(gap.max()) + reach) + 1)
    w = torch.arange(low, high + 1, dtype=torch.float64)
    log_choose = torch.lgamma(torch.tensor(n + 1.0).double()) - torch.lgamma(w + 1) - torch.lgamma(n - w + 1)
    log_p = log_choose + w * logsigmoid(gap)[:, None] + (n - w) * logsigmoid(-gap)[:, None]
    return torch.logit(w / n).clamp(-_LARGEST, _LARGEST), log_p.exp()


def _greedy(n: int, gap: Tensor) -> Tensor:
    """[G] → Δ · P(the worse arm is picked), ties split."""
    estimate, p = _wins(n, gap)
    return gap * (p * ((estimate < 0).double() + 0.5 * (estimate == 0))).sum(-1)


def _regularised(n: int, gap: Tensor, eta: float) -> Tensor:
    """[G] → η⁻¹ E KL(Gibbs(estimate) ‖ Gibbs(Δ)), uniform reference."""
    estimate, p = _wins(n, gap)
    used, best = eta * estimate, eta * gap[:, None]
    first = torch.sigmoid(used) * (logsigmoid(used) - logsigmoid(best))
    kl = first + torch.sigmoid(-used) * (logsigmoid(-used) - logsigmoid(-best))
    return (p * kl).sum(-1) / eta


def _worst(effort: Effort, loss: Callable[[int, Tensor], Tensor]) -> tuple[list[int], list[float], float]:
    """Numbers of comparisons, the loss at the worst gap for each, and its slope."""
    sizes = log_spaced(100, effort.choose(3_000, 100_000), effort.choose(4, 10))
    gaps = torch.logspace(-3.5, 0.4, effort.choose(60, 120), dtype=torch.float64)
    values = [float(loss(n, gaps).max()) for n in sizes]
    return sizes, values, fit_slope(sizes, torch.tensor([values], dtype=torch.float64), decade=math.inf).value


def _curve(label: str, sizes: list[int], values: list[float], slope: float | None = None) -> Curve:
    estimate = None if slope is None else Estimate(slope, slope, slope)
    return Curve(label, tuple(map(float, sizes)), tuple(max(v, 1e-12) for v in values), slope=estimate)


@claim(
    "plain-reward-worst-case",
    group="reverse KL",
    order=3,
    statement="Unregularised regret falls like 1/√n in the worst case over instances; on one instance it falls much faster.",
    source="DERIVED, theory, online-and-generalisation 7 (V5) and 13",
    predicts="worst case −½; one instance steeper than −0.9",
    rule="verified if the worst case is within 0.03 and the instance is steeper than −0.9",
)
def worst_case(effort: Effort) -> Findings:
    sizes, values, worst = _worst(effort, _greedy)
    single = [float(_greedy(n, torch.tensor([0.2], dtype=torch.float64))) for n in sizes]
    x, y = zip(*((n, value) for n, value in zip(sizes, single) if value > 1e-30))
    steep = fit_slope(x, torch.tensor([y], dtype=torch.float64), decade=math.inf).value
    yield near("slope, worst case over Δ", -0.5, worst, 0.03)
    yield at_most("slope on one instance, Δ = 0.2 (no evidence of a rate)", -0.9, steep)
    curves = (_curve("worst case over Δ", sizes, values, worst), _curve("one instance, Δ = 0.2", sizes, single))
    yield Plot("comparisons n", "expected plain-reward loss", curves)
    yield "Exact sums, so no interval."


@claim(
    "kl-regularised-crossover",
    group="reverse KL",
    order=3,
    statement="The worst-case KL-regularised loss falls like 1/n only beyond n ≈ η²: slopes −1.00, −0.90, −0.63, −0.40 at η = "
    "1, 10, 100, 1000.",
    source="DERIVED, theory, online-and-generalisation 7 (V5)",
    predicts="the four slopes, over n from 10² to 10⁵",
    rule="verified if every slope is within 0.06",
)
def crossover(effort: Effort) -> Findings:
    curves = [_curve("plain reward", *_worst(effort, _greedy))]
    for eta, expected in {1.0: -1.0, 10.0: -0.90, 100.0: -0.63, 1000.0: -0.40}.items():
        sizes, values, slope = _worst(effort, partial(_regularised, eta=eta))
        curves.append(_curve(f"KL-regularised, η = {eta:g}", sizes, values, slope))
        if effort.full or eta == 1:
            yield near(f"slope over the whole range, η = {eta:g}", expected, slope, 0.06)
    yield Plot("comparisons n", "worst expected loss", curves)
    yield (
        "Exact sums, so no interval. The crossover at n ≈ η² is there; the theory's −0.40 at η = 1000, below the limit −½, is "
        "not: its protocol (a simulated grid of instances) is not recorded."
    )
