"""The hyper-gradient of reward learning: its closed form, the penalty's bias, and what conjugate gradients say."""

from functools import partial

import torch
from torch import Tensor

from multiref.bilevel import (
    Debiased,
    ImplicitGradient,
    Likelihood,
    Problem,
    StopGradient,
    Upper,
    WinRate,
    hypergradient,
    implicit_hypergradient,
    penalised_gradient,
    penalised_value,
    preference_table,
)
from multiref.regularizers import AlphaDivergence, ForwardKL, Regularizer, ReverseKL
from multiref.report.figures import Plot
from multiref_lab.claim import Effort, Findings, all_within, at_most, claim, near
from multiref_lab.problems import random_logps
from multiref_lab.races import LinearWorld, linear_world
from multiref_lab.stats import fitted

_WEIGHTS, _STEP = (0.6, 0.4), 1e-3
_bilevel = partial(claim, group="bilevel")


def _world(seeds: int, seed: int) -> tuple[LinearWorld, Tensor]:
    """Problems of 4 prompts and 5 completions, and a φ for each."""
    world = linear_world(seeds, beta=0.5, prompts=4, completions=5, generator=torch.Generator().manual_seed(seed))
    return world, torch.randn(seeds, 3, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)


def _steady(problem: Problem, reward: Tensor) -> Tensor:
    """[S, X]: prompts at which no completion enters or leaves the truncated support (α > 1) within the differences' reach.

    Where one does, the optimum has a kink.
    """
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
    columns = []
    for y in range(reward.shape[-1]):
        move = torch.zeros_like(reward)
        move[..., y] = _STEP

        def value(times: int, move: Tensor = move) -> Tensor:
            moved = reward + times * move
            return upper.value(problem, problem.lower(moved), moved)

        ends = [value(k) - value(-k) for k in (1, 2, 3)]
        columns.append((45 * ends[0] - 9 * ends[1] + ends[2]) / (60 * _STEP))
    return torch.stack(columns, -1)


@_bilevel(
    "bilevel-closed-form",
    statement="Through an exact lower level the hyper-gradient is a covariance under the policy (its α-escort for other "
    "divergences): no Hessian, no second policy.",
    source="DERIVED, docs/theory.md 9; the α-family here",
    predicts="equal to the derivative of the upper value",
    rule="verified if it differs from sixth-order finite differences by at most 1e-8 for each regularizer (quick: two, full: "
    "four) and four upper objectives",
)
def closed_form(effort: Effort) -> Findings:
    family: tuple[Regularizer, ...] = (ReverseKL(_WEIGHTS), ForwardKL(_WEIGHTS))
    family += effort.choose((), (AlphaDivergence(_WEIGHTS, alpha=2.0), AlphaDivergence(_WEIGHTS, alpha=0.5)))
    for regularizer in family:
        generator, shape = torch.Generator().manual_seed(7), (effort.choose(20, 40), 4, 5)
        refs = random_logps(2, *shape, generator=generator)
        true, reward = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
        problem = Problem(preference_table(true), refs, regularizer, 1.5)
        steady = _steady(problem, reward)
        errors = [
            (hypergradient(problem, reward, upper) - _numeric(problem, reward, upper))[steady]
            for upper in (Likelihood(), Debiased(), Debiased(mixed=True), WinRate())
        ]
        where = f"{regularizer.name} (α = {regularizer.alpha:g})"
        what = f"{where}: largest |closed form − differences|, likelihood, debiased, win rate"
        yield all_within(what, 1e-8, torch.cat(errors))
    yield "Two references, weights 0.6 and 0.4; the policy is recomputed by the exact solver at each displaced reward."
    yield (
        "Where a completion enters or leaves the truncated support (α > 1) within the differences' reach, the optimum has a "
        "kink and the prompt is left out."
    )


@_bilevel(
    "bilevel-penalty-bias",
    statement="The penalised hyper-objective and its gradient are off by O(σ), from below.",
    source="FOUND, arXiv 2309.01753, landscape theorem",
    predicts="slope 1 in σ, for the gradient and for the value",
    rule="verified if both slopes are within 0.05 of 1 and ψ_σ never exceeds ψ",
)
def penalty_bias(effort: Effort) -> Findings:
    world, phi = _world(effort.choose(20, 40), 8)
    reward, upper = world.reward_of(phi), Likelihood()
    exact, value = world.upper_gradient(phi, upper), world.upper_value(phi, upper)
    sigmas = effort.choose([0.03, 0.01, 0.003], [0.1, 0.03, 0.01, 0.003, 0.001])
    penalised = [world.chain(penalised_gradient(world.problem, reward, upper, sigma=s)) for s in sigmas]
    gradients = torch.stack([(each - exact).norm(dim=-1) for each in penalised], -1)
    values = torch.stack([value - penalised_value(world.problem, reward, upper, sigma=s).mean(-1) for s in sigmas], -1)
    of_gradient, first = fitted("gradient", sigmas, gradients, decade=100)
    of_value, second = fitted("value", sigmas, values, decade=100)
    dropped = float((world.upper_gradient(phi, StopGradient()) - exact).norm(dim=-1).mean())
    yield near("slope of ‖∇ψ_σ − ∇ψ‖ in σ", 1.0, of_gradient, 0.05)
    yield near("slope of ψ − ψ_σ in σ", 1.0, of_value, 0.05)
    yield at_most("largest ψ_σ − ψ (never above)", 1e-12, float((-values).max()))
    yield Plot("σ", "error", (first, second))
    yield f"Leaving the response out altogether (stop-gradient) is off by {dropped:.3g} on these problems, at every σ."


def _implicit(world: LinearWorld, seed: int, phi: Tensor, upper: Upper) -> ImplicitGradient:
    """Of one seed, f(φ, θ) and g(φ, θ) with θ the logits."""
    whole, features = world.problem, world.features[seed]
    problem = Problem(whole.preference[seed], whole.ref_logps[:, seed], whole.regularizer, whole.beta)

    def table(phi: Tensor) -> Tensor:
        return torch.einsum("xyd,d->xy", features, phi)

    return implicit_hypergradient(
        lambda phi, theta: upper.value(problem, theta.log_softmax(-1), table(phi)).mean(),
        lambda phi, theta: -problem.lower_value(theta.log_softmax(-1), table(phi)).mean(),
        phi[seed],
        problem.lower(table(phi[seed])),
    )


@_bilevel(
    "bilevel-conjugate-gradients",
    statement="PARL's implicit gradient, its inverse by conjugate gradients, is the same number where the lower level is a "
    "softmax at its optimum.",
    source="DERIVED, arXiv 2308.02585 for the implicit form; equality derived",
    predicts="equal to the closed form",
    rule="verified if it differs by at most 1e-6 on 20 problems for the likelihood (quick), debiased and win rate",
)
def conjugate_gradients(effort: Effort) -> Findings:
    world, phi = _world(20, 10)
    uppers: dict[str, Upper] = {"likelihood": Likelihood(), "debiased": Debiased(), "win rate": WinRate()}
    for name in effort.choose(("likelihood",), tuple(uppers)):
        exact = world.upper_gradient(phi, uppers[name])
        found = [_implicit(world, seed, phi, uppers[name]) for seed in range(20)]
        what = f"{name}: largest |conjugate gradients − closed form| (at most {max(each.steps for each in found)} steps)"
        yield all_within(what, 1e-6, torch.stack([each.gradient for each in found]) - exact)
