"""The stability paper's three synthetic figures, whose set-ups are in an appendix that is not available."""

from __future__ import annotations

import torch

from multiref_lab.claim import Check, Claim, Effort, Figure, Measurement, Verdict, all_hold, at_least, at_most, exactly, near
from multiref_lab.problems import known_reward
from multiref_lab.slopes import fit_slope, log_spaced, measured_curve
from multiref_lab.statements.known_reward import draw_prompts
from multiref_lab.statements.zipf import missing_mass, zipf_draws

__all__ = ["FIGURE_ITERATIONS", "FIGURE_POSITIVE_DEFINITE", "FIGURE_SUBOPTIMALITY"]


def _positive_definite(effort: Effort) -> Measurement:
    generator = torch.Generator().manual_seed(121)
    seeds, dimension, actions = effort.choose(40, 300), 24, 5
    problem = known_reward(seeds, prompts=100, actions=actions, dimension=dimension, generator=generator)
    sizes = [*list(range(2, 13)), 16, 24, 32, 48, 64, 100]
    least = []
    for size in sizes:
        counts = (torch.arange(100) < size).double().expand(seeds, 100)
        least.append(torch.linalg.eigvalsh(problem.covariance(torch.zeros_like(problem.theta), counts))[:, 0])
    values = torch.stack(least, -1)
    curves = tuple(
        measured_curve(f"σ_min > {threshold:g}", sizes, (values > threshold).double())
        for threshold in (1e-10, 1e-3, 5e-3, 1e-2)
    )
    enough = sizes.index(dimension // (actions - 1))
    checks = (
        exactly("share positive definite at n = 5 < d/(|A| − 1)", 0, float((values[:, enough - 1] > 1e-10).double().mean())),
        exactly("share positive definite at n = 6", 1, float((values[:, enough] > 1e-12).double().mean())),
        at_least("share with σ_min > 0.01 at n = 100", 0.95, float((values[:, -1] > 1e-2).double().mean())),
    )
    return Measurement(
        checks,
        Figure("training prompts n", "share of samples", curves, log_y=False),
        "d = 24, |A| = 5, features in general position",
    )


def _suboptimality(effort: Effort) -> Measurement:
    generator = torch.Generator().manual_seed(122)
    seeds = effort.choose(60, 400)
    sizes = log_spaced(effort.choose(100, 30), 3_000, effort.choose(5, 9))
    curves, checks = [], []
    for dimension in (24, 32):
        problem = known_reward(seeds, prompts=300, actions=5, dimension=dimension, generator=generator)
        best = problem.value(problem.theta)
        regret, against = [], []
        for size in sizes:
            counts = draw_prompts(problem, size, generator=generator)
            theta = problem.empirical_optimum(counts)
            regret.append(problem.regret(theta).mean(-1))
            against.append(((counts / size * problem.value(theta)).sum(-1) - best.mean(-1)).abs())
        noise = torch.stack(against, -1)
        slope = fit_slope(sizes, noise)
        checks.append(
            at_most(
                f"reading 1, J(θ*) − J(θ_S), d = {dimension}, generic features: largest",
                1e-15,
                float(torch.stack(regret).max()),
            )
        )
        checks.append(near(f"reading 2, |J(θ*) − J_S(θ_S)|, d = {dimension}: slope", -0.5, slope, effort.choose(0.15, 0.06)))
        curves.append(measured_curve(f"|J(θ*) − J_S(θ_S)|, d = {dimension}", sizes, noise, slope=slope))
    draws = zipf_draws(2.0, effort.choose(20, 60), 30_000, generator=generator)
    heavy = [round(n * 10) for n in sizes]
    tail = torch.stack([missing_mass(draws[:, :n], 2.0) for n in heavy], -1)
    slope = fit_slope(heavy, tail)
    checks.append(near("reading 3, J(θ*) − J(θ_S), Zipf(2) feature patterns: slope", -0.5, slope, 0.06))
    curves.append(measured_curve("missing mass, Zipf(2)", heavy, tail, slope=slope))
    return Measurement(
        tuple(checks),
        Figure("training prompts n", "sub-optimality, in three readings", tuple(curves)),
        note="With generic features the empirical optimum is exact: −½ appears when J_S stands in for J, or when patterns have a tail.",
    )


def _readings_differ(measurement: Measurement) -> Verdict:
    return "convention-dependent" if all(check.holds for check in measurement.checks) else "refuted"


def _iterations(effort: Effort) -> Measurement:
    generator = torch.Generator().manual_seed(123)
    seeds = effort.choose(20, 60)
    steps = log_spaced(1, effort.choose(300, 3_000), 8)
    curves, checks = [], []
    for dimension in (24, 32):
        problem = known_reward(seeds, prompts=40, actions=5, dimension=dimension, generator=generator)
        counts = (torch.arange(40) < 20).double().expand(seeds, 40)
        theta, done, regret = torch.zeros_like(problem.theta), 0, []
        for target in steps:
            for _ in range(target - done):
                theta = theta + torch.einsum("sde,se->sd", problem.covariance(theta, counts), problem.theta - theta)
            done = target
            regret.append(problem.regret(theta).mean(-1))
        found = torch.stack(regret, -1)
        rising = int((found[:, 1:] > found[:, :-1] * (1 + 1e-12)).sum())
        checks.append(exactly(f"d = {dimension}: runs in which sub-optimality rises with T", 0, rising))
        curves.append(measured_curve(f"d = {dimension}", steps, found))
    shown: tuple[Check, ...] = tuple(checks)
    return Measurement(
        shown, Figure("iterations T", "J(θ*) − J(θ_T)", tuple(curves)), "20 training prompts of 40, |A| = 5, step 1"
    )


def _claim(name: str, statement: str, predicted: str, rule: str, measure, decide=all_hold) -> Claim:
    source = "arXiv 2601.16403, synthetic experiments (figures found, set-ups not available)"
    return Claim(name, "figures of the stability paper", statement, "found", source, predicted, rule, measure, decide)


FIGURE_POSITIVE_DEFINITE = _claim(
    "figure-share-positive-definite",
    "The share of samples whose V_S is positive definite rises to one with n.",
    "0 below d/(|A| − 1) prompts, 1 from there on; later for larger thresholds",
    "verified if all hold",
    _positive_definite,
)
FIGURE_SUBOPTIMALITY = _claim(
    "figure-suboptimality-against-n",
    "Sub-optimality falls with slope −½ in n, at d = 24 and d = 32.",
    "0 for generic features; −½ if J_S stands in for J, or for Zipf(2) patterns",
    "convention-dependent if the readings differ as predicted, else refuted",
    _suboptimality,
    _readings_differ,
)
FIGURE_ITERATIONS = _claim(
    "figure-suboptimality-against-iterations",
    "Sub-optimality falls with the number of gradient steps T.",
    "monotone in every run",
    "verified if no run rises",
    _iterations,
)
