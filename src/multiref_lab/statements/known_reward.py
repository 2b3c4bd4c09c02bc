"""The stability paper's setting, where the reward is known: the empirical problem interpolates."""

from __future__ import annotations

import torch
from torch import Tensor

from multiref import bounds
from multiref_lab.claim import Check, Claim, Curve, Effort, Figure, Measurement, all_hold, at_least, at_most, exactly, near
from multiref_lab.preferences import multinomial_counts
from multiref_lab.problems import KnownReward, known_reward
from multiref_lab.slopes import fit_slope, log_spaced, measured_curve

__all__ = ["DERIVED_BOUND", "GRADIENT_ASCENT", "INTERPOLATES", "PROMPT_NOISE", "ascend", "draw_prompts"]


def draw_prompts(problem: KnownReward, samples: int, *, generator: torch.Generator) -> Tensor:
    """[S, X]: how often each prompt is among `samples` training prompts."""
    seeds, prompts = problem.features.shape[:2]
    law = torch.full((seeds, prompts), 1 / prompts, dtype=torch.float64)
    return multinomial_counts(torch.full((seeds,), float(samples)), law, generator=generator)


def ascend(problem: KnownReward, prompt_counts: Tensor, steps: int, *, step: float) -> Tensor:
    """[S, d]: gradient ascent on J_S from 0, ∇J_S(θ) = V_S(θ)(θ* − θ)."""
    theta = torch.zeros_like(problem.theta)
    for _ in range(steps):
        theta = theta + step * torch.einsum("sde,se->sd", problem.covariance(theta, prompt_counts), problem.theta - theta)
    return theta


def _interpolates(effort: Effort) -> Measurement:
    generator = torch.Generator().manual_seed(101)
    seeds = effort.choose(20, 100)
    curves, checks = [], []
    for dimension in (24, 32):
        problem = known_reward(seeds, prompts=60, actions=5, dimension=dimension, generator=generator)
        sizes = list(range(2, 13))
        counts = [
            (torch.arange(60) < n).double().expand(seeds, 60) for n in sizes
        ]  # the first n prompts: in general position, all different
        regret = torch.stack([problem.regret(problem.empirical_optimum(c)).mean(-1) for c in counts], -1)
        enough = dimension // 4
        checks += [
            at_least(
                f"d = {dimension}: regret at n = {enough - 1} < d/(|A| − 1), smallest run",
                1e-6,
                float(regret[:, enough - 3].min()),
            ),
            at_most(f"d = {dimension}: regret at n ≥ {enough}, largest run", 1e-15, float(regret[:, enough - 2 :].max())),
        ]
        curves.append(measured_curve(f"d = {dimension}, |A| = 5", sizes, regret.clamp_min(1e-34)))
        swapped = (torch.arange(60) != 3) & (torch.arange(60) < 13)
        moved = problem.value(problem.empirical_optimum(counts[-1])) - problem.value(
            problem.empirical_optimum(swapped.double().expand(seeds, 60))
        )
        checks.append(at_most(f"d = {dimension}: replace-one value stability at n = 12", 1e-12, float(moved.abs().max())))
    return Measurement(tuple(checks), Figure("training prompts n", "sub-optimality", tuple(curves), log_x=False))


def _derived_bound(effort: Effort) -> Measurement:
    generator = torch.Generator().manual_seed(102)
    per_batch = 100
    violations, total, looseness, printed_over = 0, 0, [], []
    for i in range(effort.choose(3, 15)):
        problem = known_reward(per_batch, prompts=12, actions=4, dimension=8 + i % 5, generator=generator)
        counts = (torch.arange(12) < 2 + i % 4).double().expand(per_batch, 12)
        theta = ascend(problem, counts, steps=(1, 5, 30, 200)[i % 4], step=1.0)
        regret = problem.regret(theta).amax(-1)
        covariance = problem.covariance(theta, counts)
        values, vectors = torch.linalg.eigh(covariance)
        inside = values > 1e-10 * values[..., -1:]
        gradient = torch.einsum("sde,se->sd", covariance, problem.theta - theta).norm(dim=-1)
        along = torch.einsum("sxad,sde->sxae", problem.features, vectors)
        residual = torch.where(inside[:, None, None, :], 0.0, along).norm(dim=-1).amax((-1, -2))
        least = torch.where(inside, values, torch.inf).amin(-1)
        for s in range(per_batch):
            given = {"feature_norm": 1.0, "radius": 6.0, "residual": float(residual[s])}
            distance = float((theta[s] - problem.theta[s]).norm())
            bound = bounds.interpolation(
                gradient_norm=float(gradient[s]), sigma_min=float(least[s]), distance=distance, **given
            )
            violations += int(float(regret[s]) > bound.value * (1 + 1e-9) + 1e-14)
            looseness.append(bound.value / max(float(regret[s]), 1e-300))
            printed = bounds.stability_theorem_3(
                samples=float(counts[s].sum()),
                sigma_max=float(values[s, -1]),
                sigma_min=float(least[s]),
                sigma_min_other=float(least[s]),
                **given,
            )
            printed_over.append(printed.value / bound.value)
            total += 1
    middle = float(torch.tensor(looseness, dtype=torch.float64).median())
    ratio = float(torch.tensor(printed_over, dtype=torch.float64).median())
    checks = (
        exactly(f"violations in {total}", 0, violations),
        Check("median bound / largest regret over prompts", "≥ 1, recorded", middle, middle >= 1),
        Check("median printed Theorem 3 / derived bound", "> 1, recorded", ratio, ratio > 1),
    )
    return Measurement(checks)


def _prompt_noise(effort: Effort) -> Measurement:
    generator = torch.Generator().manual_seed(103)
    problem = known_reward(effort.choose(200, 2000), prompts=40, actions=4, dimension=10, generator=generator)
    fixed = problem.value(0.5 * torch.roll(problem.theta, 1, 0))
    sizes = log_spaced(effort.choose(1_000, 100), 10_000, effort.choose(4, 7))
    noise = []
    for size in sizes:
        counts = draw_prompts(problem, size, generator=generator)
        noise.append(((counts / size * fixed).sum(-1) - fixed.mean(-1)).abs())
    values = torch.stack(noise, -1)
    slope = fit_slope(sizes, values)
    lemma = bounds.stability_lemma_1(samples=1, radius=6, feature_norm=1)
    line = Curve("Lemma 1 (found)", tuple(map(float, sizes)), tuple(lemma.at(samples=n).value for n in sizes), "bound")
    figure = Figure(
        "training prompts n", "|J_S(π) − J(π)|", (measured_curve("a fixed policy", sizes, values, slope=slope), line)
    )
    return Measurement(
        (near("slope", -0.5, slope, effort.choose(0.15, 0.05)),),
        figure,
        "No learning happens here: every method shows this slope.",
    )


def _run(problem: KnownReward, steps: list[int]) -> tuple[Tensor, Tensor]:
    """Regret [S, T] of gradient ascent on all prompts at step 1/σ_max, and the eigenvalues [S, d] of V at θ*."""
    everything = torch.ones(problem.features.shape[:2], dtype=torch.float64)
    values = torch.linalg.eigvalsh(problem.covariance(problem.theta, everything))
    theta, done, regret = torch.zeros_like(problem.theta), 0, []
    for target in steps:
        for _ in range(target - done):
            gradient = torch.einsum("sde,se->sd", problem.covariance(theta, everything), problem.theta - theta)
            theta = theta + gradient / values[:, -1:]
        done = target
        regret.append(problem.regret(theta).mean(-1))
    return torch.stack(regret, -1), values


def _gradient_ascent(effort: Effort) -> Measurement:
    generator = torch.Generator().manual_seed(104)
    made = known_reward(effort.choose(20, 40), prompts=30, actions=5, dimension=6, generator=generator)
    steps = log_spaced(10, effort.choose(300, 1000), 9)
    x, curves, checks = tuple(map(float, steps)), [], []
    for decades in (-0.6, -1.8):
        problem = KnownReward(made.features * torch.logspace(0, decades, 6, dtype=torch.float64), made.theta)
        found, values = _run(problem, steps)
        condition = float((values[:, -1] / values[:, 0]).median())
        slope = fit_slope(steps, found)
        curves.append(
            measured_curve(f"gradient ascent, condition number {condition:.2g}", steps, found.clamp_min(1e-32), slope=slope)
        )
        derived = bounds.interpolation_gradient_ascent(
            iterations=1, radius=6, feature_norm=1, sigma_min=float(values[:, 0].min())
        )
        limits = torch.tensor([derived.at(iterations=t).value for t in x], dtype=torch.float64)
        checks.append(
            exactly(f"condition number {condition:.2g}: runs above the derived bound", 0, int((found > limits).sum()))
        )
        if decades == -0.6:
            checks += [
                at_most("log-log slope in the top decade (printed: −0.25; a geometric fall has none)", -2.0, slope),
                at_most("median regret at the last T", effort.choose(1e-4, 1e-9), float(found[:, -1].median())),
            ]
            curves.append(Curve("derived, 1/T", x, tuple(limits.tolist()), "bound"))
    printed = bounds.stability_gradient_ascent(samples=1e12, iterations=1, radius=6, feature_norm=1, condition=1)
    curves.append(
        Curve("T^{−1/4} of Theorem 5 (provisional: constants 1)", x, tuple(printed.at(iterations=t).value for t in x), "bound")
    )
    note = "A fall that looks like a power of T needs a condition number in the thousands."
    return Measurement(tuple(checks), Figure("iterations T", "sub-optimality", tuple(curves)), note)


INTERPOLATES = Claim(
    name="known-reward-interpolates",
    group="stability",
    statement="With a known reward and generic features the empirical optimum is exactly optimal once n(|A| − 1) ≥ d, and exactly stable.",
    status="derived",
    source="theory, online-and-generalisation 5.4, 5.5",
    predicted="regret 0 from n = 6 (d = 24), 8 (d = 32) with five actions, positive before",
    rule="verified if all hold",
    measure=_interpolates,
    decide=all_hold,
)
DERIVED_BOUND = Claim(
    name="stability-derived-bound",
    group="stability",
    statement="KL(π_{θ_S}‖π_{θ*})(x) ≤ ½(C‖∇J_S‖/σ⁺_min + ‖θ_S − θ*‖ε_n)² at every prompt and any parameter reached.",
    status="derived",
    source="theory, online-and-generalisation 5.5",
    predicted="no violation in ≥ 1,000 instances",
    rule="verified if there is none",
    measure=_derived_bound,
    decide=all_hold,
)
PROMPT_NOISE = Claim(
    name="prompt-sampling-noise",
    group="stability",
    statement="|J_S(π) − J(π)| of any fixed policy falls like 1/√n: the slope that the stability paper's bound has is that of prompt sampling.",
    status="derived",
    source="theory, online-and-generalisation 5.5",
    predicted="slope −½",
    rule="verified if the slope is within 0.05",
    measure=_prompt_noise,
    decide=all_hold,
)
GRADIENT_ASCENT = Claim(
    name="gradient-ascent-is-geometric",
    group="stability",
    statement="With a known reward gradient ascent converges geometrically in T; the printed T^{−1/4} is far above.",
    status="derived",
    source="theory, online-and-generalisation 5.5",
    predicted="geometric (the theory's instance: 2.4e-12 at T = 1,000, condition number 20)",
    rule="verified if the fall is faster than T^{−2} and below 1e-9 at the end, and no run is above the derived bound",
    measure=_gradient_ascent,
    decide=all_hold,
)
