"""The closed form, against finite differences of the value through the exact solver;
the penalty form, against the closed form."""

from functools import partial

import pytest
import torch

import multiref as mr
from multiref.bilevel import (
    Problem,
    hypergradient,
    implicit_hypergradient,
    penalised_gradient,
    penalised_value,
    perturbed_policy,
)
from multiref.errors import ArgumentError
from tests.bilevel.uppers import UPPERS
from tests.bilevel.worlds import FAMILY, small


def differences(function, point, step=1e-3):
    """Central differences of sixth order, entry by entry."""
    result = torch.zeros_like(point)
    for index in range(point.numel()):
        move = torch.zeros_like(point)
        move.view(-1)[index] = step
        ends = [function(point + k * move) - function(point - k * move) for k in (1, 2, 3)]
        result.view(-1)[index] = (45 * ends[0] - 9 * ends[1] + ends[2]) / (60 * step)
    return result


OBJECTIVES = ("likelihood", "debiased", "win_rate")


@pytest.mark.parametrize("objective", ["likelihood", "debiased", "debiased_mixed", "win_rate"])
@pytest.mark.parametrize("regularizer", FAMILY, ids=lambda r: f"{r.name}-{r.alpha}")
def test_closed_form_is_the_derivative(regularizer, objective):
    problem, reward = small(regularizer)
    upper = UPPERS[objective]
    numeric = differences(lambda r: upper.value(problem, problem.lower(r), r).sum(), reward)
    assert float((hypergradient(problem, reward, upper) - numeric).abs().max()) < 1e-8


def test_truncated_optimum_does_not_respond_where_it_has_no_mass():
    """α = 2 at β = 0.3 cuts some completions: the derivative is still the one of the value."""
    problem, reward = small(FAMILY[2], beta=0.3, seed=3)
    assert bool((problem.lower(reward) == -torch.inf).any())
    upper = UPPERS["likelihood"]
    numeric = differences(lambda r: upper.value(problem, problem.lower(r), r).sum(), reward, step=1e-4)
    assert float((hypergradient(problem, reward, upper) - numeric).abs().max()) < 1e-8


@pytest.mark.parametrize("objective", ["likelihood", "debiased", "win_rate"])
@pytest.mark.parametrize("regularizer", [FAMILY[1], FAMILY[3]], ids=["forward", "alpha ½"])
def test_at_the_corner_the_closed_form_is_the_derivative_too(regularizer, objective):
    """α < 1: the best reward is outside every reference's support in the first prompt, and not good enough in the second."""
    problem, reward = small(regularizer)
    refs = problem.ref_logps.clone()
    refs[..., 2] = -torch.inf
    reward[0, 2], reward[1, 2] = 4.0, -4.0
    problem = Problem(problem.preference, refs.log_softmax(-1), regularizer, problem.beta)
    policy = problem.lower(reward)
    assert policy[0, 2].exp() > 0.1 and policy[1, 2] == -torch.inf
    upper = UPPERS[objective]
    numeric = differences(lambda r: upper.value(problem, problem.lower(r), r).sum(), reward)
    assert float((hypergradient(problem, reward, upper) - numeric).abs().max()) < 1e-8


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_vetoed_completion_does_not_count(objective):
    """Reverse KL: one reference's zero; the derivatives are those of the problem without the completion."""
    problem, reward = small()
    refs = problem.ref_logps.clone()
    refs[0, :, 2] = -torch.inf
    left = [0, 1, 3]
    vetoed = Problem(problem.preference, refs.log_softmax(-1), problem.regularizer, problem.beta)
    short = Problem(problem.preference[:, left][..., left], vetoed.ref_logps[..., left], problem.regularizer, problem.beta)
    for derivative in (hypergradient, partial(penalised_gradient, sigma=0.1)):
        found = derivative(vetoed, reward, upper=UPPERS[objective])
        torch.testing.assert_close(
            found[:, left], derivative(short, reward[:, left], upper=UPPERS[objective]), rtol=0, atol=1e-12
        )
        assert float(found[:, 2].abs().max()) == 0


def test_a_constant_added_to_the_reward_changes_nothing():
    problem, reward = small()
    for name in ("likelihood", "stop_gradient", "debiased", "debiased_mixed", "win_rate"):
        gradient = hypergradient(problem, reward, UPPERS[name])
        assert float(gradient.sum(-1).abs().max()) < 1e-14
        assert torch.allclose(gradient, hypergradient(problem, reward + 5.0, UPPERS[name]), atol=1e-13)


def test_references_in_another_order_and_one_split_in_two_change_nothing():
    problem, reward = small()
    upper = UPPERS["likelihood"]
    gradient = hypergradient(problem, reward, upper)
    swapped = Problem(problem.preference, problem.ref_logps.flip(0), mr.ReverseKL((0.4, 0.6)), problem.beta)
    split = Problem(problem.preference, problem.ref_logps[[0, 1, 1]], mr.ReverseKL((0.6, 0.1, 0.3)), problem.beta)
    for other in (swapped, split):
        assert torch.allclose(gradient, hypergradient(other, reward, upper), atol=1e-14)


def test_at_the_true_reward_u1_and_u2_rest_and_u0_does_not():
    """At φ* the second part of U0 and its derivative vanish; the entropy of the labels does not (docs/theory.md 9)."""
    problem, _ = small()
    true = torch.logit(problem.preference)[..., 0]
    for name in ("stop_gradient", "debiased", "debiased_mixed"):
        assert float(hypergradient(problem, true, UPPERS[name]).abs().max()) < 1e-14
    assert float(hypergradient(problem, true, UPPERS["likelihood"]).abs().max()) > 1e-2


# every objective once and every regularizer once are quick; the other pairs of them are slow
PENALISED = [
    pytest.param(rule, name, id=f"{rule.name}-{name}", marks=[] if i == j else pytest.mark.slow)
    for i, rule in enumerate(FAMILY[:3])
    for j, name in enumerate(OBJECTIVES)
]


@pytest.mark.parametrize(("regularizer", "objective"), PENALISED)
def test_penalty_gradient_is_the_derivative_of_the_penalised_value(regularizer, objective):
    problem, reward = small(regularizer, prompts=1)
    upper, sigma = UPPERS[objective], 0.2
    numeric = differences(lambda r: penalised_value(problem, r, upper, sigma=sigma).sum(), reward)
    assert float((penalised_gradient(problem, reward, upper, sigma=sigma) - numeric).abs().max()) < 1e-8


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_penalty_bias_is_first_order_in_sigma(objective):
    problem, reward = small()
    upper = UPPERS[objective]
    exact = hypergradient(problem, reward, upper)
    sigmas = torch.tensor([0.03, 0.01, 0.003, 0.001], dtype=torch.float64)
    bias = torch.stack([(penalised_gradient(problem, reward, upper, sigma=float(s)) - exact).norm() for s in sigmas])
    steps = (bias.log().diff() / sigmas.log().diff()).tolist()
    assert all(abs(step - 1) < 0.05 for step in steps), steps


def test_penalised_value_is_below_and_the_perturbed_policy_is_its_minimiser():
    problem, reward = small()
    upper, sigma = UPPERS["likelihood"], 0.3
    value = upper.value(problem, problem.lower(reward), reward)
    below = penalised_value(problem, reward, upper, sigma=sigma)
    assert bool((below <= value + 1e-13).all())
    best = perturbed_policy(problem, reward, upper, sigma=sigma)

    def h(log_policy):
        return sigma * upper.value(problem, log_policy, reward) - problem.lower_value(log_policy, reward)

    generator = torch.Generator().manual_seed(4)
    for _ in range(20):
        near = (best + 0.1 * torch.randn(best.shape, generator=generator, dtype=torch.float64)).log_softmax(-1)
        assert bool((h(near) >= h(best) - 1e-13).all())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_conjugate_gradients_agree_on_a_softmax(objective):
    """θ = logits per prompt, lower level at its optimum: PARL's formula and the covariance are the same number."""
    problem, reward = small()
    upper = UPPERS[objective]
    found = implicit_hypergradient(
        lambda r, theta: upper.value(problem, theta.log_softmax(-1), r).sum(),
        lambda r, theta: -problem.lower_value(theta.log_softmax(-1), r).sum(),
        reward,
        problem.lower(reward),
    )
    assert found.slope < 1e-12 and found.residual < 1e-10
    assert float((found.gradient - hypergradient(problem, reward, upper)).abs().max()) < 1e-6


def test_conjugate_gradients_refuse_a_lower_level_that_is_not_convex():
    with pytest.raises(ArgumentError, match="negative curvature"):
        implicit_hypergradient(
            lambda phi, theta: (theta * phi).sum(),
            lambda phi, theta: -(theta**2).sum(),
            torch.ones(2).double(),
            torch.zeros(2).double(),
        )


@pytest.mark.parametrize("sigma", [0.0, -0.1, float("nan"), float("inf"), "0.1"])
def test_sigma_must_be_positive(sigma):
    problem, reward = small()
    with pytest.raises(ArgumentError, match="sigma"):
        penalised_gradient(problem, reward, UPPERS["likelihood"], sigma=sigma)


@pytest.mark.parametrize("objective", UPPERS)
def test_a_problem_without_prompts_has_an_empty_gradient(objective):
    problem, reward = small()
    nothing = Problem(problem.preference[:0], problem.ref_logps[:, :0], problem.regularizer, 1.0)
    assert hypergradient(nothing, reward[:0], UPPERS[objective]).shape == (0, 4)
    assert penalised_gradient(nothing, reward[:0], UPPERS[objective], sigma=0.1).shape == (0, 4)


def test_bad_problems_are_refused():
    problem, _ = small()
    with pytest.raises(ArgumentError, match="preference: found shape"):
        Problem(problem.preference[..., 0], problem.ref_logps, problem.regularizer, 1.0)
    with pytest.raises(ArgumentError, match="off one"):
        Problem(problem.preference + 0.1, problem.ref_logps, problem.regularizer, 1.0)
    with pytest.raises(ArgumentError, match="off one"):
        Problem(problem.preference * torch.nan, problem.ref_logps, problem.regularizer, 1.0)
    with pytest.raises(ArgumentError, match="beta"):
        Problem(problem.preference, problem.ref_logps, problem.regularizer, 0.0)
