"""Preference games under K references: the equilibrium, its gap, how iterations converge, what merging and baselines do; and
learning a game from labels: rates of a bilinear model, the floor of Bradley–Terry, regret online."""

import itertools
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from multiref import exact
from multiref.bilevel import preference_table
from multiref.regularizers import ForwardKL, ReverseKL
from multiref.report.figures import Curve, Plot
from multiref.training.online import RLOO, WinRate
from multiref_lab.claim import Check, Effort, Findings, all_within, at_least, claim, exactly, near
from multiref_lab.estimators import logistic_mle
from multiref_lab.preferences import PairCounts, sample_pairs
from multiref_lab.problems import Games, bilinear_games, random_logps
from multiref_lab.procedure import table_fit
from multiref_lab.stats import fitted, log_spaced

_WEIGHTS = (0.5, 0.3, 0.2)
_game = partial(claim, group="preference games", source="DERIVED, docs/theory.md 11")
_learnt = partial(claim, group="preference games", order=1)
_RULE, _BETA = ReverseKL((0.5, 0.5)), 0.2  # of learnt games


def random_games(seeds: int, completions: int, *, generator: torch.Generator, references: int = 3) -> tuple[Tensor, Tensor]:
    """P [S, Y, Y] with independent log-odds of deviation about 2, cycles and all; references [K, S, Y]."""
    odds = 2 * torch.randn(seeds, completions, completions, generator=generator, dtype=torch.float64)
    return torch.sigmoid((odds - odds.mT) / 2**0.5), random_logps(references, seeds, completions, generator=generator)


@_game(
    "nash-collapses-to-pool",
    statement="The equilibrium under K references (reverse KL) is that under their normalised pool alone, and its gap is zero.",
    predicts="differences and gaps ≤ 1e-12 for β from 1 to 0.001",
)
def collapses(effort: Effort) -> Findings:
    preference, refs = random_games(effort.choose(20, 200), 10, generator=torch.Generator().manual_seed(71))
    rule = ReverseKL(_WEIGHTS)
    pool = rule.pool(refs).log_softmax(-1)[None]
    apart, gaps = [], []
    for beta in (1.0, 0.1, 0.01, 0.001):
        several = exact.nash(preference, refs, rule, beta=beta)
        alone = exact.nash(preference, pool, ReverseKL(), beta=beta)
        apart.append((several.policy - alone.policy).abs().max())
        gaps.append(exact.duality_gap(several.log_policy, preference, refs, rule, beta=beta).max())
    yield all_within("largest |π*(K references) − π*(their pool)|", 1e-12, torch.stack(apart))
    yield all_within("largest gap(π*)", 1e-12, torch.stack(gaps))


@_game(
    "nash-gap-identity",
    statement="gap(π) = max_q J(q, π) − J(π, π) = β KL(π‖BR(π)) at every π, half of the saddle-point gap max − min.",
    predicts="both identities to 1e-12",
)
def gap_identity(effort: Effort) -> Findings:
    generator = torch.Generator().manual_seed(72)
    preference, refs = random_games(effort.choose(100, 1000), 10, generator=generator)
    policy = random_logps(len(preference), 10, generator=generator, spread=2.0)
    errors, halves = [], []
    for beta in (0.05, 0.3, 2.0):
        for rule in (ReverseKL(_WEIGHTS), ForwardKL(_WEIGHTS)):
            reward = (preference @ policy.exp()[..., None])[..., 0]
            best = exact.solve(reward, refs, rule, beta=beta)
            plain = best.value - exact.value(policy, reward, refs, rule, beta=beta)
            errors.append(exact.duality_gap(policy, preference, refs, rule, beta=beta) - plain)
            # the other player: min_q J(π, q) = min_q E[P(π ≻ q)] + β D(q), J(π, π) = ½
            most = best.value - 0.5 + beta * rule.penalty(policy, refs) + 0.5
            other = exact.solve(-(preference.mT @ policy.exp()[..., None])[..., 0], refs, rule, beta=beta)
            least = -other.value - beta * rule.penalty(policy, refs)
            halves.append(plain - 0.5 * (most - least))
    yield all_within("largest |β KL(π‖BR(π)) − (solve(Pπ).value − value(π, Pπ))|", 1e-12, torch.stack(errors))
    yield all_within("largest |gap − half of (max − min)|", 1e-12, torch.stack(halves))


@_game(
    "nash-gap-of-an-estimate",
    statement="The equilibrium π̂ of an estimated preference P̂ has gap β log E_π̂ e^{e/β} ≤ max e²/(2β), e = (P − P̂)π̂, where the "
    "paper bounds it by (L²/β + L) E_π̂‖(Θ̂ − Θ)φ‖², L the link's Lipschitz constant.",
    source="DERIVED, docs/theory.md 11; the bound: arXiv 2602.23116, Theorem 3.1 (FOUND)",
    predicts="equality to 1e-6, relative; no violation of either bound",
)
def gap_of_an_estimate(effort: Effort) -> Findings:
    generator = torch.Generator().manual_seed(78)
    games = bilinear_games(effort.choose(50, 1000), generator=generator)
    size = torch.logspace(-2, 0, len(games.theta), dtype=torch.float64)[:, None]
    error = size * torch.randn(games.theta.shape, generator=generator, dtype=torch.float64)
    guess, rule = games.preference_of(games.theta + error), ReverseKL((0.5, 0.5))
    apart, loose, above = [], [], 0
    for beta in (10.0, 1.0, 0.1, 0.01):
        log_used = exact.nash(guess, games.ref_logps, rule, beta=beta).log_policy
        used = log_used.exp()
        gap = exact.duality_gap(log_used, games.preference, games.ref_logps, rule, beta=beta)
        e = ((games.preference - guess) @ used[..., None])[..., 0]
        cumulant = beta * torch.log1p((used * (torch.expm1(e / beta) - e / beta)).sum(-1))
        ours = e.abs().amax(-1) ** 2 / (2 * beta)
        printed = (0.25**2 / beta + 0.25) * (used * (games.features @ games.skew(error)).square().sum(-1)).sum(-1)
        apart.append(gap / cumulant - 1)
        loose.append(printed / gap)
        above += int((gap > torch.minimum(ours, printed) * (1 + 1e-9)).sum())
    middle = float(torch.cat(loose).median())
    yield all_within("largest |gap / (β log E_π̂ e^{e/β}) − 1|", 1e-6, torch.cat(apart))
    yield exactly(f"gaps above a bound, of {4 * len(error):,}", 0, above)
    yield Check("median printed bound / gap", "≥ 1, recorded", middle, middle >= 1)


@_game(
    "nash-not-by-a-fixed-opponent",
    statement="Win rate over the pool (U3), and against a constant mixture with the pool (Nash-MD's, geometric, of ½), end "
    "away from the equilibrium; against itself a policy ends at it.",
    predicts="shares of the pool's gap that are left: U3 the most, the mixture less, itself none",
)
def fixed_opponents(effort: Effort) -> Findings:
    preference, refs = random_games(effort.choose(100, 1000), 8, generator=torch.Generator().manual_seed(79))
    beta, rule = 0.1, ReverseKL(_WEIGHTS)
    pool = rule.pool(refs).log_softmax(-1)
    start = exact.duality_gap(pool, preference, refs, rule, beta=beta)
    left = []
    for share in (0.0, 0.5, 1.0):
        u = pool
        for _ in range(600):  # the policy that is its own best response to π^share pool^(1 − share)
            opponent = (share * u.log_softmax(-1) + (1 - share) * pool).softmax(-1)
            u = u + 0.05 * (pool + (preference @ opponent[..., None])[..., 0] / beta - u)
        left.append(exact.duality_gap(u.log_softmax(-1), preference, refs, rule, beta=beta) / start)
    over_pool, mixed, itself = left
    yield at_least("median share left, win rate over the pool", 0.3, float(over_pool.median()))
    yield at_least("median share left, mixture of ½", 0.05, float(mixed.median()))
    yield at_least("median of the first less the second", 0.0, float((over_pool - mixed).median()))
    yield all_within("largest share left against itself", 1e-9, itself)
    yield "A prototype on other games had 0.84 and 0.27 (theory, online-and-generalisation 11.4):"
    yield "how much is left is the games'."


def _rate(preference: Tensor, refs: Tensor, start: Tensor, best: Tensor, beta: float, step: Tensor) -> tuple[Tensor, Tensor]:
    """log-rate per iteration of the logits' distance to the equilibrium, over what stays above rounding, and
    whether the distance fell."""
    rule, u, distances = ReverseKL(), start, []
    pool = rule.pool(refs)
    for _ in range(400):
        answer = pool + (preference @ u.softmax(-1)[..., None])[..., 0] / beta
        u = u + step[:, None] * (answer - u)
        distances.append((u.log_softmax(-1) - best).norm(dim=-1))
    d = torch.stack(distances, -1)
    last = (d > 1e-12).double().cumprod(-1).sum(-1, keepdim=True)
    place = torch.arange(d.shape[-1], dtype=torch.float64)
    used = ((place < last) & (place >= 0.2 * last)).double()  # least squares: complex pairs go round while they shrink
    centred = used * (place - (used * place).sum(-1, keepdim=True) / used.sum(-1, keepdim=True))
    slope = (centred * d.clamp_min(1e-300).log()).sum(-1) / (centred * place).sum(-1)
    return slope, d[:, -1] < d[:, 0]


@_game(
    "nash-iteration",
    statement="With ±iμ the largest eigenvalues of (P − ½)(diag π* − π*π*ᵀ)/β, best responses converge locally if and only if "
    "μ < 1; damped by 1/(1 + μ²) they always do, at rate μ/√(1 + μ²) on the logits.",
    predicts="every plain iteration decided by μ < 1; damped rates within 0.01",
)
def iteration(effort: Effort) -> Findings:
    generator = torch.Generator().manual_seed(73)
    preference, refs = random_games(effort.choose(20, 200), 8, generator=generator, references=1)
    decided, errors = [], []
    for beta in (0.05, 0.1, 0.2):
        best = exact.nash(preference, refs, ReverseKL(), beta=beta).log_policy
        p = best.exp()
        jacobian = (preference - 0.5) @ (torch.diag_embed(p) - p[..., None] * p[..., None, :]) / beta
        values, vectors = torch.linalg.eig(jacobian)
        mu, leading = values.imag.abs().max(-1)
        start = best + 1e-5 * torch.take_along_dim(vectors.real, leading[:, None, None], -1)[..., 0]
        _, fell = _rate(preference, refs, start, best, beta, torch.ones_like(mu))
        clear = (mu - 1).abs() > 0.03
        decided.append((fell == (mu < 1))[clear])
        rate, _ = _rate(preference, refs, start, best, beta, 1 / (1 + mu**2))
        errors.append((rate.exp() - mu / (1 + mu**2).sqrt())[mu > 0.3])
    agree = torch.cat(decided)
    yield exactly(f"plain iterations, of {len(agree)} with |μ − 1| > 0.03, that μ does not decide", 0, float((~agree).sum()))
    yield all_within("largest |damped rate − μ/√(1 + μ²)|", 0.01, torch.cat(errors))


@_game(
    "nash-merge-fails",
    statement="Unlike for a reward, merging the K equilibria under single references is not the equilibrium.",
    predicts="gap of the merged policy > 0, between the equilibrium's and the pool's",
)
def merge_fails(effort: Effort) -> Findings:
    preference, refs = random_games(effort.choose(100, 1000), 8, generator=torch.Generator().manual_seed(74))
    beta, rule = 0.1, ReverseKL(_WEIGHTS)
    each = [exact.nash(preference, ref[None], ReverseKL(), beta=beta).log_policy for ref in refs]
    laws = exact.merge(torch.stack(each), _WEIGHTS), rule.pool(refs).log_softmax(-1)
    merged, pool = (exact.duality_gap(law, preference, refs, rule, beta=beta) for law in laws)
    yield at_least("least gap of the merged equilibria", 1e-6, float(merged.min()))
    yield at_least("its median", 1e-4, float(merged.median()))
    yield Check("median gap of the pool, for comparison", "larger", float(pool.median()), bool(pool.median() > merged.median()))


@_game(
    "group-baseline",
    statement="Win rates within a group of G under a leave-one-out baseline: averaged over the G − 1 others they play the game "
    "at strength β(G − 1)/G; divided by G, at β.",
    predicts="expected update zero at either equilibrium, ≤ 1e-10",
)
def group_baseline(effort: Effort) -> Findings:
    seeds, completions = effort.choose(20, 50), 4
    preference, refs = random_games(seeds, completions, generator=torch.Generator().manual_seed(75), references=2)
    rule = ReverseKL()
    found: dict[str, list[Tensor]] = {"by G, β": [], "by G − 1, β(G − 1)/G": [], "by G − 1, β": []}
    for group, beta in itertools.product((2, 3), (0.1, 0.5)):
        places = {
            "by G, β": (beta, 1.0),
            "by G − 1, β(G − 1)/G": (beta * (group - 1) / group, group / (group - 1)),
            "by G − 1, β": (beta, group / (group - 1)),
        }
        for name, (strength, factor) in places.items():
            best = exact.nash(preference, refs, rule, beta=strength).log_policy
            found[name].append(_expected_update(preference, refs, best, group, beta, factor))
    for name in ("by G, β", "by G − 1, β(G − 1)/G"):
        yield all_within(f"largest expected update, divided {name}", 1e-10, torch.cat(found[name]))
    wrong = torch.cat(found["by G − 1, β"]).abs().amax(-1)
    yield at_least("median of it, divided by G − 1, at the equilibrium of β", 1e-5, float(wrong.median()))


def _expected_update(preference: Tensor, refs: Tensor, log_policy: Tensor, group: int, beta: float, factor: float) -> Tensor:
    """[S, Y]: the exact expected gradient in the logits of RLOO with `WinRate`, summed over all groups; `factor` scales its
    reward (G/(G − 1): the plain mean over the others, up to a constant)."""
    completions = preference.shape[-1]
    groups = torch.tensor(list(itertools.product(range(completions), repeat=group)))
    updates = []
    for table, log_p, ref in zip(preference, log_policy, refs.unbind(1)):

        def judge(_: object, first: Sequence[int], second: Sequence[int], table: Tensor = table) -> list[float]:
            return [float(table[i, j]) for i, j in zip(first, second)]

        reward = WinRate(judge, group=group)
        wins = torch.tensor(reward([0] * groups.numel(), groups.flatten().tolist()), dtype=torch.float64).view_as(groups)
        penalty = ReverseKL().implicit_reward(log_p, ref, beta=beta)
        advantages = RLOO(group=group).advantages(factor * wins - penalty[groups])
        weight = log_p[groups].sum(-1).exp()[:, None] * advantages
        drift = torch.zeros(completions, dtype=torch.float64).index_add(0, groups.flatten(), weight.flatten())
        updates.append((drift - drift.sum() * log_p.exp()) / group)
    return torch.stack(updates)


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


@_learnt(
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
    bilinear, plain = [], []
    for size in sizes:
        counts = _draw(games, _pool(games), _pool(games), size, generator)
        fit = logistic_mle(None, counts, differences=games.differences, ridge=1e-6)
        bilinear.append(_gap(games, games.preference_of(fit.theta)))
        plain.append(_gap(games, preference_table(table_fit(counts, ridge=1e-6)[:, 0])))
    slope, curve = fitted("bilinear, maximum likelihood", sizes, torch.stack(bilinear, -1))
    flat, floor = fitted("Bradley–Terry on the same pairs", sizes, torch.stack(plain, -1))
    yield near("slope, bilinear", -1, slope, 0.15)
    yield near("slope, Bradley–Terry", 0, flat, 0.1)
    yield Plot("pairs n", "gap of the equilibrium", (curve, floor))


@_learnt(
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
