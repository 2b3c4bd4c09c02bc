"""Lower levels that cannot hold the Gibbs policy, and sampled estimates, against witnesses of their own."""

from dataclasses import replace

import pytest
import torch

from multiref.bilevel import Likelihood
from multiref.errors import ArgumentError
from multiref_lab.races import ESTIMATORS, descend, linear_world, sampled_gradient
from multiref_lab.races.restricted import exact_hypergradient, expected_estimates, log_linear, settle, small_transformer


@pytest.mark.parametrize("features", [3, 20])
def test_the_class_gradient_is_that_of_the_class_optimum(features):
    """ψ(φ) = f(φ, θ*(φ)) by solving the lower level again at φ ± h: central differences, error h² = 1e-8."""
    case = log_linear(5, features=features, generator=torch.Generator().manual_seed(1))
    theta, slope = settle(case, case.start)
    assert float(slope.max()) < 1e-8
    found, h = exact_hypergradient(case, theta), 1e-4
    for axis in range(3):
        ends = []
        for sign in (1, -1):
            phi = case.phi.clone()
            phi[:, axis] += sign * h
            moved = replace(case, phi=phi)
            ends.append(moved.upper(phi, settle(moved, theta, tolerance=1e-12)[0]))
        numeric = ((ends[0] - ends[1]) / (2 * h)).detach()
        assert torch.allclose(found[:, axis], numeric, atol=2e-6)


def test_bias_of_two_policies_is_first_order_in_sigma():
    case = log_linear(5, features=4, generator=torch.Generator().manual_seed(2))
    theta, _ = settle(case, case.start)
    error = []
    for sigma in (1e-2, 1e-3):
        found = expected_estimates(case, theta, sigma=sigma)
        error.append((found["two policies"] - found["truth"]).norm())
    assert 7 < float(error[0] / error[1]) < 14


def test_a_point_that_is_no_minimum_is_refused():
    case = small_transformer(1, width=4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ArgumentError, match="minimum"):
        exact_hypergradient(case, case.start)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_sampled_gradients_are_right_on_average(name):
    """1,000 estimates of 8 pairs a prompt against the closed form: within five standard errors and the penalty's bias (two
    policies and shared rollouts at σ = 0.02).
    """
    world = linear_world(3, beta=0.5, prompts=3, completions=4, generator=torch.Generator().manual_seed(0))
    phi = torch.full((3, 3), 0.5, dtype=torch.float64)
    exact = world.upper_gradient(phi, Likelihood())
    drawn = sampled_gradient(
        world.repeat(1000),
        phi.repeat_interleave(1000, 0),
        name,
        pairs=8,
        sigma=0.02,
        generator=torch.Generator().manual_seed(1),
    ).unflatten(0, (3, 1000))
    bias = 0.005 if name in ("two_policies", "shared_rollouts") else 0.0
    assert bool(((drawn.mean(1) - exact).abs() < 5 * drawn.std(1) / 1000**0.5 + bias).all())


def test_conjugate_gradients_are_the_covariance_for_a_gibbs_policy():
    world = linear_world(3, beta=0.5, generator=torch.Generator().manual_seed(0))
    phi = torch.full((3, 3), 0.5, dtype=torch.float64)
    both = [
        sampled_gradient(world, phi, name, pairs=5, sigma=0.1, generator=torch.Generator().manual_seed(4))
        for name in ("covariance", "conjugate_gradient")
    ]
    assert torch.allclose(both[0], both[1], atol=1e-12)


def test_descent_goes_down_and_is_measured_on_its_second_half():
    world = linear_world(4, beta=0.5, generator=torch.Generator().manual_seed(0))
    places, squares = descend(
        world, "covariance", steps=80, pairs=64, rate=2.0, sigma=0.1, generator=torch.Generator().manual_seed(0)
    )
    start = world.upper_gradient(torch.zeros(4, 3, dtype=torch.float64), Likelihood()).square().sum(-1)
    assert places.shape == (40, 4, 3) and bool((squares.mean(0) < 0.3 * start).all())


def test_refusals():
    world = linear_world(1, beta=0.5, generator=torch.Generator().manual_seed(0))
    phi, generator = torch.zeros(1, 3, dtype=torch.float64), torch.Generator()
    with pytest.raises(ArgumentError, match="estimator"):
        sampled_gradient(world, phi, "E9", pairs=2, sigma=0.1, generator=generator)
    with pytest.raises(ArgumentError, match="sigma"):
        sampled_gradient(world, phi, "two_policies", pairs=2, sigma=0.0, generator=generator)
