"""Estimators on real samples: their means are what they claim, their deviations scale as they claim."""

import pytest
import torch

from multiref.bilevel import (
    conjugate_gradients,
    covariance,
    hypergradient,
    independent,
    penalised_gradient,
    perturbed_policy,
    policy_response,
    shared,
    shared_weights,
)
from multiref.errors import ArgumentError
from tests.bilevel.uppers import UPPERS
from tests.bilevel.worlds import small

ROLLOUTS = 400


def draw(log_policy, n, repeats, generator):
    """[X, Y] → [R, X, n] completions."""
    return torch.stack([torch.multinomial(log_policy.exp(), n, replacement=True, generator=generator) for _ in range(repeats)])


def by_reward(surrogate, reward):
    """The derivative [R, X, Y] of R independent estimates, each with its own copy of the reward table."""
    return torch.autograd.grad(surrogate.sum(), reward)[0]


def estimates(name, problem, table, sigma, generator, repeats=200):
    """[R, X, Y]: estimates of the response term of U0, exact payoffs, ROLLOUTS rollouts a prompt in all."""
    upper = UPPERS["likelihood"]
    still = problem.lower(table)
    reward = table.expand(repeats, *table.shape).clone().requires_grad_(True)
    if name == "covariance":
        y = draw(still, ROLLOUTS, repeats, generator)
        payoff = upper.payoff(problem, still, table).expand(repeats, *table.shape)
        return by_reward(covariance(payoff.gather(-1, y), reward.gather(-1, y), beta=problem.beta), reward)
    moved = perturbed_policy(problem, table, upper, sigma=sigma)
    if name == "two_policies":
        lower, perturbed = draw(still, ROLLOUTS // 2, repeats, generator), draw(moved, ROLLOUTS // 2, repeats, generator)
        return by_reward(independent(reward.gather(-1, lower), reward.gather(-1, perturbed), sigma=sigma), reward)
    y = draw(still, ROLLOUTS, repeats, generator)
    weights = (moved - still).exp().expand(repeats, *table.shape).gather(-1, y)
    return by_reward(shared(reward.gather(-1, y), weights, sigma=sigma), reward)


@pytest.mark.parametrize(("name", "predicted"), [("two_policies", -1.0), ("shared_rollouts", 0.0), ("covariance", 0.0)])
def test_deviation_in_sigma(name, predicted):
    """Two free averages differ by O(1) noise over σ; shared ones by noise of the size of 1 − w = O(σ), over σ."""
    problem, table = small()
    generator = torch.Generator().manual_seed(1)
    sigmas = torch.tensor([0.3, 0.1, 0.03, 0.01], dtype=torch.float64)
    spread = torch.stack(
        [estimates(name, problem, table, float(s), generator, 100).std(0).square().sum().sqrt() for s in sigmas]
    )
    x = sigmas.log() - sigmas.log().mean()
    assert abs(float(x @ spread.log() / x.square().sum()) - predicted) < 0.1


@pytest.mark.parametrize("name", ["two_policies", "shared_rollouts", "covariance"])
def test_means_within_five_standard_errors(name):
    problem, table = small()
    upper, sigma, still = UPPERS["likelihood"], 0.1, problem.lower(table)
    found = estimates(name, problem, table, sigma, torch.Generator().manual_seed(2))
    if name == "covariance":
        target = policy_response(problem, still, upper.payoff(problem, still, table))
    else:
        moved = perturbed_policy(problem, table, upper, sigma=sigma)
        target = penalised_gradient(problem, table, upper, sigma=sigma) - upper.direct(problem, moved, table)
    error = found.std(0) / len(found) ** 0.5
    assert bool(((found.mean(0) - target).abs() < 5 * error + 1e-12).all())


def test_pairs_with_labels_estimate_the_whole_hypergradient():
    """As a trainer uses it: the unit is a labelled pair, its utility the observed loss;
    direct term and covariance add up to dψ/dr."""
    problem, table = small()
    generator, repeats, pairs = torch.Generator().manual_seed(3), 400, 500
    log_policy = problem.lower(table)
    first, second = draw(log_policy, pairs, repeats, generator), draw(log_policy, pairs, repeats, generator)
    wins = problem.preference[torch.arange(table.shape[0])[None, :, None], first, second]
    sign = 2 * torch.bernoulli(wins, generator=generator) - 1
    reward = table.expand(repeats, *table.shape).clone().requires_grad_(True)
    a, b = reward.gather(-1, first), reward.gather(-1, second)
    loss = -torch.nn.functional.logsigmoid(sign * (a - b))
    found = by_reward(loss.mean(-1) + covariance(loss, a + b, beta=problem.beta), reward)
    error = found.std(0) / repeats**0.5
    assert bool(((found.mean(0) - hypergradient(problem, table, UPPERS["likelihood"])).abs() < 5 * error).all())


def test_gibbs_weights_are_the_ratio_of_the_two_policies_to_first_order():
    """w = e^{−σ (c − E c)/β}: the perturbed policy's ratio is off by O(σ²); a costly completion weighs less."""
    problem, table = small()
    still = problem.lower(table)
    payoff = UPPERS["likelihood"].payoff(problem, still, table)
    mean = (still.exp() * payoff).sum(-1)
    off = []
    for sigma in (1e-2, 1e-3):
        exact = (perturbed_policy(problem, table, UPPERS["likelihood"], sigma=sigma) - still).exp()
        weights = shared_weights(payoff, mean, sigma=sigma, beta=problem.beta)
        off.append(float((weights - exact).abs().max()))
    assert off[1] < off[0] / 80
    by_hand = shared_weights(torch.tensor([[3.0, 1.0]]), torch.tensor([2.0]), sigma=0.5, beta=0.25)
    torch.testing.assert_close(by_hand.log(), torch.tensor([[-2.0, 2.0]]))


def test_a_covariance_of_two_units_by_hand():
    """u = 1, 3 and r = 2, 5 at β = ½: (−1 · 2 + 1 · 5)/(2 − 1)/½ = 6."""
    assert float(covariance(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 5.0]), beta=0.5)) == 6


def test_one_conjugate_gradient_step_by_hand():
    """H = diag(1, 4), target (3, 4): length 25/73 along it, (144, −108)/73 is left, 180/73 of 5; two steps solve it."""
    hessian, target = torch.diag(torch.tensor([1.0, 4.0])).double(), torch.tensor([3.0, 4.0]).double()
    solution, residual, steps = conjugate_gradients(lambda v: hessian @ v, target, steps=1)
    torch.testing.assert_close(solution, target * 25 / 73)
    assert residual == pytest.approx(36 / 73) and steps == 1
    solution, residual, steps = conjugate_gradients(lambda v: hessian @ v, target, steps=9)
    torch.testing.assert_close(solution, torch.tensor([3.0, 1.0]).double())
    assert residual < 1e-10 and steps == 2


def test_bad_arguments():
    ones = torch.ones(2, 3)
    with pytest.raises(ArgumentError, match="at least 2"):
        covariance(ones[:, :1], ones[:, :1], beta=1.0)
    with pytest.raises(ArgumentError, match="sigma"):
        shared(ones, ones, sigma=0.0)
    with pytest.raises(ArgumentError, match="sigma"):
        independent(ones, ones, sigma=-1.0)
    with pytest.raises(ArgumentError, match="beta"):
        covariance(ones, ones, beta=0.0)
