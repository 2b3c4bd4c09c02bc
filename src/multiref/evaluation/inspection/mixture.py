"""Which references, at which weights, predict preferences that were held out; and whether more than one is supported at all."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import softplus

from multiref._progress import each_told
from multiref.evaluation.inspection.evidence import Evidence
from multiref.evaluation.inspection.score_test import FEWEST, ScoreTest, try_additions
from multiref.references.token_level import standard_error
from multiref.weighting import arwc, fit_preferences, uniform, vaw, vdw

SIGNIFICANCE = 0.01  # one-sided, for each question "does one more reference help?", shared among the candidates
MIN_GAIN = 0.005  # nats a pair: an effect that surely is smaller is no reason to keep another model
Rule = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Step:
    """One step of the selection: the candidate with the largest z among those that may join (or among all, if none may), the
    gain in held-out log-likelihood per pair and its standard error, the level that its p had to reach; accepted or not, and
    which earlier ones it made needless."""

    test: ScoreTest
    gain: float
    error: float
    level: float
    accepted: bool
    dropped: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the reference that was tried."""
        return self.test.name


@dataclass(frozen=True)
class Contender:
    """A way to weigh references: held-out log-likelihood per pair (mean, standard error), accuracy,
    and the difference to the best single one."""

    name: str
    log_likelihood: float
    error: float
    accuracy: float
    gain: float
    gain_error: float


@dataclass(frozen=True)
class Weighting:
    """Weights on the simplex with 95 % bootstrap intervals, and the scale: P(chosen ≻ rejected) = σ(scale · Σ_k w_k
    margin_k)."""

    names: tuple[str, ...]
    weights: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]
    scale: float
    scale_interval: tuple[float, float]


def folds_of(groups: Tensor, folds: int, seed: int) -> Tensor:
    """[P] → [P] fold numbers; pairs of one prompt are in one fold."""
    clusters = int(groups.max()) + 1
    order = torch.randperm(clusters, generator=torch.Generator().manual_seed(seed))
    return (torch.argsort(order) % folds)[groups]


def held_out(pooled: Callable[[Tensor, Tensor], Tensor], margins: Tensor, folds: Tensor) -> tuple[Tensor, Tensor]:
    """(log-likelihoods [P], logits [P]), each pair's from a fit that did not see its prompt.
    pooled(training margins, margins) → logits."""
    logits = torch.zeros_like(margins[0])
    for fold in range(int(folds.max()) + 1):
        inside = folds == fold
        logits[inside] = pooled(margins[:, ~inside], margins[:, inside])
    return -softplus(-logits), logits


def _fitted(training: Tensor, testing: Tensor) -> Tensor:
    return fit_preferences(training).coefficients @ testing


def _scaled(rule: Rule) -> Callable[[Tensor, Tensor], Tensor]:
    """Weights by a rule, scale by fitting: so that a rule is judged by its weights and not by the unit of margins."""

    def pooled(training: Tensor, testing: Tensor) -> Tensor:
        weights = rule(training)
        scale = fit_preferences((weights[:, None] * training).sum(0, keepdim=True)).scale
        return scale * (weights[:, None] * testing).sum(0)

    return pooled


def _adaptive(training: Tensor, testing: Tensor) -> Tensor:
    scale = fit_preferences((arwc(training) * training).sum(0, keepdim=True)).scale
    return scale * (arwc(testing) * testing).sum(0)


def _best_single(training: Tensor, testing: Tensor) -> Tensor:
    fits = [fit_preferences(row[None]) for row in training]
    best = min(range(len(fits)), key=lambda k: fits[k].loss)
    return fits[best].coefficients[0] * testing[best]


def fewest(candidates: int) -> int:
    """Prompts below which no p can reach the first level: of G sign flips none is less likely than 2^−G."""
    return max(FEWEST, math.ceil(math.log2(max(candidates, 1) / SIGNIFICANCE)))


def select(
    evidence: Evidence, allowed: list[int], folds: Tensor, *, min_gain: float = MIN_GAIN
) -> tuple[list[int], list[Step]]:
    """Forward selection. It starts from no reference at all (a fair coin), so that "none" and "one" are answers too.

    A candidate may join if its score test has p ≤ SIGNIFICANCE / candidates, and the upper end (95 %) of its gain in held-out
    log-likelihood reaches `min_gain`: the test says whether there is an effect, the gain how large it is. The one with the
    largest z joins. Then each earlier one must still pass given the others, or is dropped for good.
    """
    chosen: list[int] = []
    gone: list[int] = []
    steps: list[Step] = []
    current = torch.full((evidence.pairs,), -math.log(2), dtype=torch.float64)
    while candidates := [k for k in allowed if k not in chosen + gone]:
        level = SIGNIFICANCE / len(candidates)
        tests = dict(zip(candidates, try_additions(evidence, candidates, chosen), strict=True))
        offers = []
        for k in sorted(candidates, key=lambda k: -tests[k].z):
            trial = held_out(_fitted, evidence.margins[[*chosen, k]], folds)[0]
            gain, error = float((trial - current).mean()), standard_error(trial - current, evidence.groups)
            accepted = tests[k].p <= level and gain + 1.96 * error >= min_gain
            offers.append((k, Step(tests[k], gain, error, level, accepted)))
            if accepted or tests[k].p > level:
                break
        best, step = next((offer for offer in offers if offer[1].accepted), offers[0])
        if not step.accepted:
            steps.append(step)
            break
        again = try_additions(evidence, chosen, [*chosen, best]) if chosen else []
        needless = [k for k, test in zip(chosen, again, strict=True) if test.p > SIGNIFICANCE / len(chosen)]
        steps.append(replace(step, dropped=tuple(evidence.names[k] for k in needless)))
        gone += needless
        chosen = [k for k in chosen if k not in needless] + [best]
        current = held_out(_fitted, evidence.margins[chosen], folds)[0]
    return sorted(chosen), steps


def contenders(evidence: Evidence, allowed: list[int], folds: Tensor) -> list[Contender]:
    """Single references, uniform weights, the convex fit and the strategies of the literature, on the same held-out pairs."""
    margins = evidence.margins[allowed]
    rules: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"best single (chosen in training)": _best_single}
    rules |= {f"{evidence.names[k]} alone": _single(position) for position, k in enumerate(allowed)}
    rules |= {"uniform": _scaled(uniform), "convex fit": _fitted, "VDW": _scaled(vdw), "VAW": _scaled(vaw), "ARWC": _adaptive}
    results = {name: held_out(rule, margins, folds) for name, rule in rules.items()}
    base = results["best single (chosen in training)"][0]
    found = []
    for name, (likelihood, logits) in results.items():
        gain = likelihood - base
        accuracy = float(((logits > 0).double() + 0.5 * (logits == 0).double()).mean())
        errors = standard_error(likelihood, evidence.groups), standard_error(gain, evidence.groups)
        found.append(Contender(name, float(likelihood.mean()), errors[0], accuracy, float(gain.mean()), errors[1]))
    return found


def _single(position: int) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda training, testing: _fitted(training[position : position + 1], testing[position : position + 1])


def weigh(evidence: Evidence, chosen: list[int], *, resamples: int, seed: int) -> Weighting:
    """The convex fit on all pairs, with percentile intervals from resampling prompts."""
    margins = evidence.margins[chosen]
    fit = fit_preferences(margins)
    generator = torch.Generator().manual_seed(seed)
    clusters = int(evidence.groups.max()) + 1
    draws = []
    for _ in each_told(range(resamples), "resampling", resamples):
        drawn = torch.bincount(torch.randint(clusters, (clusters,), generator=generator), minlength=clusters)
        again = fit_preferences(margins, counts=drawn[evidence.groups].double())
        draws.append(torch.cat([again.weights, torch.tensor([again.scale]).double()]))
    low, high = torch.quantile(torch.stack(draws), torch.tensor([0.025, 0.975]).double(), dim=0).tolist()
    return Weighting(
        tuple(evidence.names[k] for k in chosen),
        tuple(fit.weights.tolist()),
        tuple(zip(low[:-1], high[:-1], strict=True)),
        fit.scale,
        (low[-1], high[-1]),
    )
