"""The hyper-gradient of reward learning: its closed form, the penalty's bias, and what conjugate gradients say."""

from __future__ import annotations

import torch
from torch import Tensor

from multiref.bilevel import (
    Problem,
    Upper,
    hypergradient,
    implicit_hypergradient,
    penalised_gradient,
    penalised_value,
    preference_table,
    upper_named,
)
from multiref.regularizers import AlphaDivergence, ForwardKL, Regularizer, ReverseKL
from multiref_lab.bilevel.world import LinearReward, linear_world
from multiref_lab.claim import Claim, Effort, Figure, Measurement, all_hold, at_most, near
from multiref_lab.slopes import fit_slope, measured_curve

__all__ = ["BILEVEL_CLOSED_FORM", "BILEVEL_CONJUGATE_GRADIENTS", "BILEVEL_PENALTY_BIAS"]

_WEIGHTS = (0.6, 0.4)


def _tables(seeds: int, regularizer: Regularizer, beta: float) -> tuple[Problem, Tensor]:
    generator = torch.Generator().manual_seed(7)
    ref = torch.randn(2, seeds, 4, 5, generator=generator, dtype=torch.float64).log_softmax(-1)
    true, guess = torch.randn(2, seeds, 4, 5, generator=generator, dtype=torch.float64)
    return Problem(preference_table(true), ref, regularizer, beta), guess


_STEP = 1e-3


def _steady(problem: Problem, reward: Tensor) -> Tensor:
    """[S, X]: prompts at which no completion enters or leaves the truncated support (α > 1) within the differences' reach; the optimum has a kink there."""
    support = problem.lower(reward) > -torch.inf
    steady = torch.ones_like(support[..., 0])
    for y in range(reward.shape[-1]):
        for reach in (-3 * _STEP, 3 * _STEP):
            moved = reward.clone()
            moved[..., y] += reach
            steady &= ((problem.lower(moved) > -torch.inf) == support).all(-1)
    return steady


def _numeric(problem: Problem, reward: Tensor, upper: Upper) -> Tensor:
    """[S, X, Y]: sixth-order central differences; prompts do not interact, so all prompts are moved at once."""
    step, columns = _STEP, []
    for y in range(reward.shape[-1]):
        move = torch.zeros_like(reward)
        move[..., y] = step

        def value(times: int, move: Tensor = move) -> Tensor:
            moved = reward + times * move
            return upper.value(problem, problem.lower(moved), moved)

        ends = [value(k) - value(-k) for k in (1, 2, 3)]
        columns.append((45 * ends[0] - 9 * ends[1] + ends[2]) / (60 * step))
    return torch.stack(columns, -1)


def _closed_form(effort: Effort) -> Measurement:
    family: tuple[Regularizer, ...] = (ReverseKL(_WEIGHTS), ForwardKL(_WEIGHTS))
    checks = []
    for regularizer in family + effort.choose((), (AlphaDivergence(_WEIGHTS, alpha=2.0), AlphaDivergence(_WEIGHTS, alpha=0.5))):
        problem, reward = _tables(effort.choose(20, 40), regularizer, 1.5)
        worst, steady = 0.0, _steady(problem, reward)
        for name in ("likelihood", "debiased", "debiased_mixed", "win_rate"):
            upper = upper_named(name)
            error = hypergradient(problem, reward, upper) - _numeric(problem, reward, upper)
            worst = max(worst, float(error[steady].abs().max()))
        checks.append(
            at_most(
                f"{regularizer.name} (α = {regularizer.alpha:g}): largest |closed form − differences|, U0 U2 U3", 1e-8, worst
            )
        )
    return Measurement(
        tuple(checks),
        note="Two references, weights 0.6 and 0.4; the policy is recomputed by the exact solver at each displaced reward. Where a completion "
        "enters or leaves the truncated support (α > 1) within the differences' reach, the optimum has a kink and the prompt is left out.",
    )


def _bias(effort: Effort) -> Measurement:
    world = linear_world(effort.choose(20, 40), beta=0.5, prompts=4, completions=5, generator=torch.Generator().manual_seed(8))
    seeds = world.features.shape[0]
    phi = torch.randn(seeds, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    reward, upper = world.reward_of(phi), upper_named("likelihood")
    exact = world.chain(hypergradient(world.problem, reward, upper))
    value = world.upper_value(phi, upper)
    sigmas = effort.choose([0.03, 0.01, 0.003], [0.1, 0.03, 0.01, 0.003, 0.001])
    gradients = torch.stack(
        [(world.chain(penalised_gradient(world.problem, reward, upper, sigma=s)) - exact).norm(dim=-1) for s in sigmas], -1
    )
    values = torch.stack([value - penalised_value(world.problem, reward, upper, sigma=s).mean(-1) for s in sigmas], -1)
    of_gradient, of_value = fit_slope(sigmas, gradients, decade=100), fit_slope(sigmas, values, decade=100)
    dropped = float((world.upper_gradient(phi, upper_named("stop_gradient")) - exact).norm(dim=-1).mean())
    return Measurement(
        (
            near("slope of ‖∇ψ_σ − ∇ψ‖ in σ", 1.0, of_gradient, 0.05),
            near("slope of ψ − ψ_σ in σ", 1.0, of_value, 0.05),
            at_most("largest ψ_σ − ψ (never above)", 1e-12, float((-values).max())),
        ),
        Figure(
            "σ",
            "error",
            (
                measured_curve("gradient", sigmas, gradients, slope=of_gradient),
                measured_curve("value", sigmas, values, slope=of_value),
            ),
        ),
        note=f"Leaving the response out altogether (stop-gradient) is off by {dropped:.3g} on these problems, at every σ.",
    )


def _softmax_pieces(world: LinearReward, seed: int, upper: Upper):
    """f(φ, θ) and g(φ, θ) of one seed, θ = logits."""
    problem = Problem(
        world.problem.preference[seed], world.problem.ref_logps[:, seed], world.problem.regularizer, world.problem.beta
    )

    def table(phi: Tensor) -> Tensor:
        return torch.einsum("xyd,d->xy", world.features[seed], phi)

    return (
        problem,
        table,
        lambda phi, theta: upper.value(problem, theta.log_softmax(-1), table(phi)).mean(),
        lambda phi, theta: -problem.lower_value(theta.log_softmax(-1), table(phi)).mean(),
    )


def _cg(effort: Effort) -> Measurement:
    world = linear_world(20, beta=0.5, prompts=4, completions=5, generator=torch.Generator().manual_seed(10))
    phi = torch.randn(20, 3, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
    checks = []
    for name in effort.choose(("likelihood",), ("likelihood", "debiased", "win_rate")):
        upper, worst, steps = upper_named(name), 0.0, 0
        exact = world.upper_gradient(phi, upper)
        for seed in range(20):
            problem, table, f, g = _softmax_pieces(world, seed, upper)
            found = implicit_hypergradient(f, g, phi[seed], problem.lower(table(phi[seed])))
            worst, steps = max(worst, float((found.gradient - exact[seed]).abs().max())), max(steps, found.steps)
        checks.append(at_most(f"{name}: largest |conjugate gradients − closed form| (at most {steps} steps)", 1e-6, worst))
    return Measurement(tuple(checks))


BILEVEL_CLOSED_FORM = Claim(
    name="bilevel-closed-form",
    group="bilevel",
    statement="Through an exact lower level the hyper-gradient is a covariance under the policy (its α-escort for other divergences): no Hessian, no second policy.",
    status="derived",
    source="docs/theory.md 9; the α-family here",
    predicted="equal to the derivative of the upper value",
    rule="verified if it differs from sixth-order finite differences by at most 1e-8 for each regularizer (quick: two, full: four) and four upper objectives",
    measure=_closed_form,
    decide=all_hold,
)

BILEVEL_PENALTY_BIAS = Claim(
    name="bilevel-penalty-bias",
    group="bilevel",
    statement="The penalised hyper-objective and its gradient are off by O(σ), from below.",
    status="found",
    source="arXiv 2309.01753, landscape theorem",
    predicted="slope 1 in σ, for the gradient and for the value",
    rule="verified if both slopes are within 0.05 of 1 and ψ_σ never exceeds ψ",
    measure=_bias,
    decide=all_hold,
)

BILEVEL_CONJUGATE_GRADIENTS = Claim(
    name="bilevel-conjugate-gradients",
    group="bilevel",
    statement="PARL's implicit gradient, its inverse by conjugate gradients, is the same number where the lower level is a softmax at its optimum.",
    status="derived",
    source="arXiv 2308.02585 for the implicit form; equality derived",
    predicted="equal to the closed form",
    rule="verified if it differs by at most 1e-6 on 20 problems for U0 (quick), U2 and U3",
    measure=_cg,
    decide=all_hold,
)
