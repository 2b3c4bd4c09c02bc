"""Sampled hyper-gradients: their noise in σ, their bias away from the Gibbs policy, how fast descent with each of them goes,
and, along its paths, weak gradient domination of the upper level: an assumption of the paper that nothing derives.
"""

from functools import partial

import torch
from torch import Tensor

from multiref.bilevel import Likelihood, implicit_hypergradient
from multiref.report import Estimate
from multiref.report.figures import Plot
from multiref_lab.claim import Check, Effort, Findings, at_least, at_most, claim, near
from multiref_lab.races import (
    ROLLOUTS,
    LinearWorld,
    Restricted,
    audit,
    descend,
    exact_hypergradient,
    expected_estimates,
    linear_world,
    log_linear,
    outer_path,
    sampled_gradient,
    settle,
    small_transformer,
)
from multiref_lab.stats import bootstrap_mean, fitted

_PROMPTS, _PAIRS = 4, 32
_estimated = partial(claim, group="bilevel", order=1, source="DERIVED, docs/theory.md 9")


def _world(seeds: int, *, seed: int = 8) -> LinearWorld:
    return linear_world(seeds, beta=0.5, prompts=_PROMPTS, completions=5, generator=torch.Generator().manual_seed(seed))


@_estimated(
    "bilevel-estimator-noise",
    statement="With separate rollouts (two policies, E1) the standard deviation grows as 1/σ; shared rollouts (E2) and the "
    "covariance (E3) do not feel σ.",
    predicts="slopes −1, 0, 0 in σ",
    rule="verified if each slope is within 0.1",
)
def estimator_noise(effort: Effort) -> Findings:
    """Deviation of each estimate, worlds repeated along the seed axis."""
    seeds, repeats = 20, effort.choose(20, 100)
    phi = torch.randn(seeds, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64).repeat_interleave(repeats, 0)
    wide, sigmas = _world(seeds).repeat(repeats), [0.1, 0.03, 0.01]
    curves = []
    for name, predicted in (("two_policies", -1.0), ("shared_rollouts", 0.0), ("covariance", 0.0)):
        draw = partial(sampled_gradient, wide, phi, name, pairs=100, generator=torch.Generator().manual_seed(12))
        spread = [draw(sigma=s).unflatten(0, (seeds, repeats)).std(1).norm(dim=-1) for s in sigmas]
        label = name.replace("_", " ")
        slope, curve = fitted(label, sigmas, torch.stack(spread, -1))
        yield near(f"{label}: slope of the standard deviation in σ", predicted, slope, 0.1)
        curves.append(curve)
    yield Plot("σ", "standard deviation of ∇ψ (100 pairs a prompt)", curves)


def _relative(found: Tensor, truth: Tensor) -> Tensor:
    """[S, d], [S, d] → [S]."""
    return torch.div((found - truth).norm(dim=-1), truth.norm(dim=-1))


def _classes(effort: Effort) -> list[tuple[str, Restricted, int]]:
    """Classes of policies with the number of warm steps that each needs, all on the same problems."""
    cases = []
    for p in (2, 8, 20):
        case = log_linear(20, features=p, generator=torch.Generator().manual_seed(3))
        cases.append((f"log-linear, {p} of 20 features", case, 0))
    if effort.full:
        case = small_transformer(20, width=4, generator=torch.Generator().manual_seed(3))
        cases.append(("transformer of width 4", case, 300))
    return cases


def _by_steps(case: Restricted, theta: Tensor) -> Tensor:
    """[S, d]: conjugate gradients on all seeds as one block-diagonal system."""
    return implicit_hypergradient(
        lambda phi, t: case.upper(phi, t).sum(), lambda phi, t: case.lower(phi, t).sum(), case.phi, theta, steps=2000
    ).gradient


def _below_gibbs(case: Restricted, theta: Tensor) -> float:
    """How much less than the Gibbs policy the class's optimum is worth to the lower level, mean over seeds."""
    reward = case.reward_of(case.phi)
    off = case.problem.lower_value(case.problem.lower(reward), reward).mean(-1)
    return float((off + case.lower(case.phi, theta).detach() - 0.5 * case.ridge * theta.square().sum(-1)).mean())


@_estimated(
    "bilevel-off-gibbs",
    statement="Where the policy class cannot hold the Gibbs policy, the covariance (E3) and shared rollouts with Gibbs "
    "weights (E2) are biased; two policies of the class (E1, or E2 with their ratio) are not, but for O(σ).",
    predicts="bias of the covariance at least a tenth where features are missing and for a small transformer, none where the "
    "class holds the policy; two policies and shared rollouts by ratio at most 2 % at σ = 0.001",
    rule="verified if these hold on 20 problems a class (95 % intervals; the transformer in the full form)",
)
def off_gibbs(effort: Effort) -> Findings:
    notes = []
    for label, case, warm in _classes(effort):
        theta, slope = settle(case, case.start, warm=warm)
        found = expected_estimates(case, theta, sigma=1e-3)
        error = {name: _relative(value, found["truth"]) for name, value in found.items() if name != "truth"}
        medians = ", ".join(f"{name} {float(each.median()):.2g}" for name, each in error.items())
        where = f"{_below_gibbs(case, theta):.2g} below the Gibbs policy's value, slope left {float(slope.max()):.1g}"
        notes.append(f"{label} ({where}): {medians}")
        mean = {name: bootstrap_mean(each) for name, each in error.items()}
        yield at_most(f"{label}: mean relative bias of two policies, σ = 0.001", 0.02, mean["two policies"])
        yield at_most(f"{label}: … of shared rollouts with the ratio of two policies", 0.02, mean["shared by ratio"])
        if "20 of 20" in label:
            apart = float(_relative(_by_steps(case, theta), exact_hypergradient(case, theta)).max())
            yield at_most(f"{label}: median relative bias of the covariance", 0.02, float(error["covariance"].median()))
            yield at_most(f"{label}: conjugate gradients against the dense Hessian", 1e-6, apart)
        else:
            yield at_least(f"{label}: mean relative bias of the covariance", 0.1, mean["covariance"])
            yield at_least(f"{label}: … of shared rollouts with Gibbs weights", 0.1, mean["shared by Gibbs weights"])
    yield (
        "π_φ is the class's own optimum under weight decay, found by quasi-Newton; expectations over its ancestral samples are "
        "summed, not drawn, so what is left is bias."
    )
    yield f"Median relative errors against the class's own implicit gradient: {'; '.join(notes)}"


def _path(world: LinearWorld, repeats: int, name: str, horizon: int, generator: torch.Generator) -> Tensor:
    """[S]: mean ‖∇ψ‖² over the second half of a path of N steps.

    Steps and σ are those of the theory: α ∝ N^(−1/2), and for two policies σ ∝ N^(−1/6), α ∝ σ N^(−1/2).
    """
    apart = name == "two_policies"
    sigma = horizon ** (-1 / 6) if apart else 0.1 * horizon**-0.25
    rate = 8 * horizon**-0.5 * (sigma if apart else 1.0)
    _, squares = descend(world, name, steps=horizon, pairs=_PAIRS, rate=rate, sigma=sigma, generator=generator)
    return squares.mean(0).reshape(-1, repeats).mean(1)


@_estimated(
    "bilevel-rates",
    statement="‖∇ψ‖² falls as samples^(−1/3) with two policies (E1) and as samples^(−1/2) with shared rollouts (E2), the "
    "covariance (E3) and conjugate gradients.",
    predicts="slopes −1/3 and −1/2",
    rule="verified if each slope over the last decade is within 0.1 of its prediction (24 seeds) and the bootstrap intervals "
    "of covariance and two policies do not meet",
)
def rates(effort: Effort) -> Findings:
    repeats = effort.choose(1, 4)
    world = _world(24, seed=effort.choose(8, 108)).repeat(repeats)
    horizons = effort.choose([46, 100, 215], [100, 215, 464, 1000, 2154])
    slopes: dict[str, Estimate] = {}
    curves = []
    for name, rollouts in ROLLOUTS.items():
        generator, label = torch.Generator().manual_seed(3), name.replace("_", " ")
        ends = torch.stack([_path(world, repeats, name, horizon, generator) for horizon in horizons], -1)
        slopes[name], curve = fitted(label, [horizon * _PROMPTS * _PAIRS * rollouts for horizon in horizons], ends)
        predicted = -1 / 3 if name == "two_policies" else -0.5
        yield near(f"{label}: slope of mean ‖∇ψ‖² in rollouts", predicted, slopes[name], 0.1)
        curves.append(curve)
    slow, fast = slopes["two_policies"], slopes["covariance"]
    apart = "slope of the covariance less that of two policies: intervals apart"
    yield Check(apart, "covariance < two policies", fast.value - slow.value, fast.high < slow.low)
    yield Plot("rollouts", "mean of ‖∇ψ‖², second half of the path", curves)
    yield (
        "Step and σ follow the horizon N as the theory's optimum: step ∝ N^(−1/2) (two policies: σ N^(−1/2)), σ ∝ N^(−1/6) "
        "for two policies; means over the second half of each path, whose constants (step 8 N^(−1/2), 32 pairs a prompt) were "
        "chosen on the worlds of the quick form; the full form has others."
    )
    yield "Conjugate gradients with the exact Hessian are the covariance term by term here."


def _tabular(effort: Effort) -> tuple[Tensor, Tensor]:
    """Gaps to the best of several searches and gradient norms along sampled descent by the covariance, [P, S] each."""
    world = _world(24, seed=effort.choose(8, 108))
    best = audit(world, Likelihood(), starts=effort.choose(1, 3), generator=torch.Generator().manual_seed(1)).value
    steps, generator = effort.choose(120, 600), torch.Generator().manual_seed(14)
    places, squares = descend(world, "covariance", steps=steps, pairs=8, rate=0.5, sigma=0.1, generator=generator)
    return torch.stack([world.upper_value(phi, Likelihood()) for phi in places]) - best, squares.sqrt()


def _class(case: Restricted, warm: int, steps: int) -> tuple[Tensor, Tensor]:
    """Gaps to the lowest value on the path, over its first half, and gradient norms there.

    Only paths whose lower level stayed at a minimum.
    """
    theta, _ = settle(case, case.start, warm=warm)
    values, norms = outer_path(case, theta, steps=steps, rate=0.5)
    half, whole = max(1, steps // 2), ~values.isnan().any(0)
    return (values - values.amin(0))[:half, whole], norms[:half, whole]


@claim(
    "bilevel-weak-domination",
    group="bilevel",
    order=2,
    statement="The gap of the upper level is at most a constant times its gradient's norm (weak gradient domination: assumed "
    "by the paper, not derivable).",
    source="FOUND, arXiv 2410.15610, assumption",
    predicts="a bounded ratio along the path",
    rule="verified where (ψ − ψ*)/‖∇ψ‖ stays below 5 along every path of 20 problems or more a class (transformers in the full "
    "form, where the lower level stayed at a minimum)",
)
def weak_domination(effort: Effort) -> Findings:
    generator = torch.Generator().manual_seed(effort.choose(3, 103))  # the limit was set on the quick form's problems
    features = log_linear(20, features=8, generator=generator)
    paths = {"tabular": _tabular(effort), "log-linear, 8 of 20 features": _class(features, 0, effort.choose(6, 30))}
    if effort.full:
        paths["transformer of width 4"] = _class(small_transformer(20, width=4, generator=generator), 300, 12)
    notes = []
    for label, (gaps, norms) in paths.items():
        linear, square = (gaps.clamp_min(0) / norms).amax(0), (gaps.clamp_min(0) / norms**2).amax(0)
        yield at_most(f"{label}: largest (ψ − ψ*)/‖∇ψ‖ on {len(linear)} paths", 5.0, float(linear.max()))
        notes.append(
            f"{label}, {len(linear)} paths: (ψ − ψ*)/‖∇ψ‖ at its largest on a path, median {float(linear.median()):.2g}, "
            f"maximum {float(linear.max()):.2g}; (ψ − ψ*)/‖∇ψ‖² {float(square.median()):.2g} and {float(square.max()):.2g}"
        )
    yield "; ".join(notes) + "."
    yield (
        "Measured along paths that were taken, so a bound for these, no proof for any other; ψ* is the best value found "
        "(for the restricted classes: on the path itself)."
    )
