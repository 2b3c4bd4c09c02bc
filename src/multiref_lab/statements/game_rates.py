"""Learning a preference game from labels: rates of a bilinear model, the floor of Bradley–Terry, and regret online."""

from functools import partial

import torch
from torch import Tensor

from multiref import exact
from multiref.regularizers import ReverseKL
from multiref.report.figures import Curve, Plot
from multiref_lab.claim import Check, Effort, Findings, claim, near
from multiref_lab.estimators import logistic_mle
from multiref_lab.preferences import PairCounts, sample_pairs
from multiref_lab.problems import Games, bilinear_games
from multiref_lab.stats import fitted, log_spaced

_game = partial(claim, group="preference games", order=1)
_RULE, _BETA = ReverseKL((0.5, 0.5)), 0.2


def _gap(games: Games, preference: Tensor) -> Tensor:
    """[S, Y, Y] → [S]: true gap of the equilibrium of an estimated preference."""
    used = exact.nash(preference, games.ref_logps, _RULE, beta=_BETA).log_policy
    return exact.duality_gap(used, games.preference, games.ref_logps, _RULE, beta=_BETA)


def _pool(games: Games) -> Tensor:
    return _RULE.pool(games.ref_logps).log_softmax(-1)


def _draw(games: Games, first: Tensor, second: Tensor, size: int, generator: torch.Generator) -> PairCounts:
    """Pairs of [S, Y] laws, as counts with one prompt."""
    drawn = {"preference": games.preference.unsqueeze(1), "second_logps": second.unsqueeze(1)}
    return sample_pairs(None, first.unsqueeze(1), size, generator=generator, **drawn)


@_game(
    "bilinear-rate",
    statement="A generalised bilinear preference learnt from n pairs of the pool loses 1/n in gap. Bradley–Terry, on the same "
    "cycles, keeps a floor.",
    source="FOUND, arXiv 2602.23116 (rate); the floor DERIVED, docs/nash.md",
    predicts="slope −1 ± 0.15; Bradley–Terry 0 ± 0.1",
    rule="verified if both slopes are",
)
def bilinear_rate(effort: Effort) -> Findings:
    generator = torch.Generator().manual_seed(76)
    games = bilinear_games(effort.choose(24, 200), generator=generator)
    sizes = log_spaced(effort.choose(10_000, 3_000), effort.choose(100_000, 300_000), effort.choose(3, 7))
    completions = games.features.shape[1]
    rewards = torch.eye(completions, dtype=torch.float64)[:, :-1].unsqueeze(0)
    bilinear, plain = [], []
    for size in sizes:
        counts = _draw(games, _pool(games), _pool(games), size, generator)
        fit = logistic_mle(None, counts, differences=games.differences, ridge=1e-6)
        bilinear.append(_gap(games, games.preference_of(fit.theta)))
        r = torch.einsum("xyd,sd->sy", rewards, logistic_mle(rewards, counts, ridge=1e-6).theta)
        plain.append(_gap(games, torch.sigmoid(r[..., :, None] - r[..., None, :])))
    slope, curve = fitted("bilinear, maximum likelihood", sizes, torch.stack(bilinear, -1))
    flat, floor = fitted("Bradley–Terry on the same pairs", sizes, torch.stack(plain, -1))
    yield near("slope, bilinear", -1, slope, 0.15)
    yield near("slope, Bradley–Terry", 0, flat, 0.1)
    yield Plot("pairs n", "gap of the equilibrium", (curve, floor))


@_game(
    "greedy-regret",
    statement="Online, pairs of the policy and the pool, the equilibrium recomputed: regret grows like log T.",
    source="FOUND, arXiv 2602.23116, Theorem 4.2",
    predicts="equal steps per half decade, within 30 % over the last decade",
)
def greedy_regret(effort: Effort) -> Findings:
    generator = torch.Generator().manual_seed(77)
    games = bilinear_games(effort.choose(24, 100), generator=generator)
    marks = log_spaced(100, effort.choose(10_000, 100_000), effort.choose(25, 49))
    pool, first, regret = _pool(games), _pool(games), torch.zeros(len(games.theta), dtype=torch.float64)
    total: PairCounts | None = None
    done, start, path = 0, None, []
    for mark in marks:
        counts = _draw(games, first, pool, mark - done, generator)
        gap = exact.duality_gap(first, games.preference, games.ref_logps, _RULE, beta=_BETA)
        regret = regret + (mark - done) * gap
        total = counts if total is None else total + counts
        start = logistic_mle(None, total, differences=games.differences, ridge=0.1, start=start).theta
        first = exact.nash(games.preference_of(start), games.ref_logps, _RULE, beta=_BETA).log_policy
        done = mark
        path.append(float(regret.mean()))
    halves = [path[-1 - (len(marks) - 1) * k // (effort.choose(4, 6))] for k in range(3)]
    steps = [halves[0] - halves[1], halves[1] - halves[2]]
    ratio = steps[0] / steps[1]
    yield Check("step of the last half decade over the one before", "1 ± 0.3", ratio, abs(ratio - 1) <= 0.3)
    yield Plot("labels T", "Σ gap(π_t)", (Curve("mean regret of the policy", tuple(map(float, marks)), tuple(path)),))
    yield f"Steps {steps[1]:.3g} and {steps[0]:.3g}."
