"""Clipped log-ratios: when a clip in the objective changes the optimum, what its quantile rule is good for, and budgets."""

import itertools
from functools import partial

import torch
from torch import Tensor

from multiref import bounds, exact
from multiref.pools import power_pool
from multiref.regularizers import ReverseKL
from multiref.training.online import clipped_objective
from multiref_lab.claim import Check, Effort, Findings, at_least, at_most, claim, exactly
from multiref_lab.problems import bandits_of_seed, random_logps
from multiref_lab.stats import bound_values

_clip = partial(claim, group="clipped KL")
_WEIGHTS = (0.6, 0.4)


def _worlds(seeds: int, seed: int, beta: float) -> tuple[Tensor, Tensor, Tensor, torch.Generator]:
    """Rewards [S, Y], the pool's log-mass, log π*/P, and the generator."""
    problem, generator = bandits_of_seed(seed, seeds, weights=_WEIGHTS)
    reward, refs = problem.reward[:, 0], problem.ref_logps[:, :, 0]
    pool = power_pool(refs, _WEIGHTS, order=0.0)
    best = exact.solve(reward, refs, ReverseKL(_WEIGHTS), beta=beta).log_policy
    return reward, pool, best - pool, generator


@_clip(
    "clip-collapse",
    statement="In the *objective* a clip changes the optimum: for τ < max ℓ*, ℓ* = log π*/P, all mass on the best completion "
    "beats π*; for τ ≥ 1 + max |ℓ*| nothing does.",
    source="DERIVED, docs/theory.md 12",
    predicts="shares 1 and 0",
)
def clip_collapse(effort: Effort) -> Findings:
    beta = 0.2
    reward, pool, ratio, generator = _worlds(effort.choose(200, 2000), 91, beta)
    best, most = ratio + pool, ratio.amax(-1)
    top = torch.full_like(reward, -torch.inf).scatter(-1, ratio.argmax(-1, keepdim=True), 0.0)
    below, above = most * torch.rand(most.shape, generator=generator, dtype=torch.float64), 1 + ratio.abs().amax(-1)

    def value(policy: Tensor, tau: Tensor) -> Tensor:
        rows = zip(policy, reward, pool, tau.tolist(), strict=True)
        return torch.stack([clipped_objective(p, r, q, beta=beta, tau=t) for p, r, q, t in rows])

    beats = (value(top, below) > value(best, below))[below > 1e-3]
    rivals = [random_logps(*reward.shape, generator=generator, spread=s) for s in (0.5, 2.0, 8.0)]
    rivals += [vertex.expand_as(reward) for vertex in torch.eye(8, dtype=torch.float64).log()]
    violations = 0
    for rival, share in itertools.product(rivals, (1.0, 0.3, 0.05)):
        mixed = (share * rival.exp() + (1 - share) * best.exp()).log()
        violations += int((value(mixed, above) > value(best, above) + 1e-12).sum())
    yield exactly(f"share of {len(beats)} where all mass on the best beats π*, τ < max ℓ*", 1, float(beats.double().mean()))
    yield exactly("rivals that beat π*, τ = 1 + max |ℓ*|", 0, violations)


@_clip(
    "clip-quantile",
    statement="τ at the (1 − 2α)-quantile of |ℓ| minimises the *bound*, and not the error.",
    source="DERIVED, docs/theory.md 12 (the rule: arXiv 2602.21765)",
    predicts="it minimises the bound, exactly; the error there is up to several times the best",
)
def quantile(effort: Effort) -> Findings:
    beta, prompts, rollouts, delta = 0.2, 100, 4, 0.05
    seeds, repeats = effort.choose(40, 200), effort.choose(200, 1000)
    _, _, ratio, generator = _worlds(seeds, 92, beta)
    spread = 3 * ratio  # log-ratios of completions: nats, not fractions of one
    level = bounds.clip_quantile(samples=prompts, rollouts=rollouts, delta=delta)
    alpha, worst, off = (1 - level) / 2, [], []
    for each in spread:
        p = random_logps(8, generator=generator).exp()
        size, order = each.abs().sort()
        tau = float(size[int(torch.searchsorted(p[order].cumsum(0), level).clamp_max(7))])
        grid = torch.cat((size, torch.linspace(0.01, float(size[-1]) * 1.2, 60).double()))
        bias = (p * (each.abs() - grid[:, None]).clamp_min(0)).sum(-1)
        bound = (1 + 2 * beta * grid) * alpha + beta * bias
        off.append(float((1 + 2 * beta * tau) * alpha + beta * (p * (each.abs() - tau).clamp_min(0)).sum() - bound.min()))
        reward = torch.rand(8, generator=generator, dtype=torch.float64)
        drawn = torch.multinomial(p, repeats * prompts * rollouts, replacement=True, generator=generator).view(repeats, -1)
        true = float((p * (reward - beta * each)).sum())
        kept = each.clamp(-grid[:, None], grid[:, None])  # [τ, Y]
        share = torch.zeros(repeats, 8, dtype=torch.float64).scatter_add(1, drawn, torch.ones_like(drawn).double())
        value = (share / drawn.shape[1]) @ (reward - beta * kept).T
        error = (value - true).square().mean(0).sqrt()
        here = float(error[int((grid - tau).abs().argmin())])
        worst.append(here / float(error.min()))
    yield at_most("bound at the quantile − least bound over a grid", 1e-12, max(off))
    yield at_least("largest error there / least error over the grid", 1.5, max(worst))
    yield f"Error there over the best: median {sorted(worst)[len(worst) // 2]:.2f}, largest {max(worst):.2f}."


@_clip(
    "reward-shift-bound",
    statement="|Ĵ − J*| ≤ (1 + 2βτ)α + √(1 + χ²) √L₂ + β E|ℓ − ℓ^τ| for a fixed policy.",
    source="FOUND, arXiv 2602.21765, Theorem 1",
    predicts="no violation in ≥ 1,000",
)
def shift_bound(effort: Effort) -> Findings:
    loose, violations, count = [], 0, 0
    for beta in (0.05, 0.2, 1.0):
        problem, generator = bandits_of_seed(93, effort.choose(60, 400), weights=_WEIGHTS)
        reward, refs = problem.reward[:, 0], problem.ref_logps[:, :, 0]
        learnt = (reward + 0.2 * torch.randn(reward.shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
        policy = exact.solve(learnt, refs, ReverseKL(_WEIGHTS), beta=beta).log_policy
        law, pool = power_pool(refs, _WEIGHTS, order=1.0), power_pool(refs, _WEIGHTS, order=0.0)
        p, ratio = policy.exp(), policy - pool
        chi = ((p * (policy - law).exp()).sum(-1) - 1).clamp_min(0)
        mse = (law.exp() * (learnt - reward) ** 2).sum(-1)
        true = (p * (reward - beta * ratio)).sum(-1)
        for n, rollouts in ((30, 1), (100, 4)):
            drawn = torch.multinomial(p, n * rollouts, replacement=True, generator=generator)
            for tau in (0.3, 1.0, 3.0):
                kept = ratio.clamp(-tau, tau)
                value = (learnt - beta * kept).gather(-1, drawn).mean(-1)
                hidden = (p * (ratio - kept).abs()).sum(-1)
                fixed = {"samples": n, "rollouts": rollouts, "beta": beta, "tau": tau}
                limit = bound_values(bounds.reward_shift, chi_squared=chi, squared_error=mse, clip_bias=hidden, **fixed)
                gap = (value - true).abs()
                violations, count = violations + int((gap > limit).sum()), count + len(gap)
                loose.append(limit / gap.clamp_min(1e-9))
    median = float(torch.cat(loose).median())
    yield exactly(f"violations in {count:,}", 0, violations)
    yield Check("median bound / gap", "≥ 1, recorded", median, median >= 1)
    yield "One prompt a world: the prompts' own noise, which the bound also covers, is not in the gap."


@_clip(
    "budget-rules",
    statement="K* = (c_pre/c_dec)^{2/3} makes most of a budget for the bound, √((c_pre/c_dec) σ_r²/σ_p²) for the variance.",
    source="FOUND, arXiv 2602.21765",
    predicts="within 2 % of the best over a grid",
)
def budget_rules(effort: Effort) -> Findings:
    grid = torch.linspace(1, 400, 100_000, dtype=torch.float64)
    off = []
    for ratio in torch.logspace(-1, 3, effort.choose(20, 200)).tolist():
        k = torch.cat((torch.tensor([bounds.rollouts_per_prompt(ratio, 1.0)], dtype=torch.float64), grid))  # the rule's first
        bound = (ratio + k).sqrt() * (1 + k**-0.5)
        off.append(float(bound[0] / bound[1:].min() - 1))
        for deviation in (0.3, 1.0, 3.0):
            k[0] = bounds.rollouts_per_prompt(ratio, 1.0, rollout_deviation=deviation, prompt_deviation=1.0)
            variance = (ratio + k) * (1 + deviation**2 / k)
            off.append(float(variance[0] / variance[1:].min() - 1))
    yield at_most("largest excess over the best of a grid", 0.02, max(off))
