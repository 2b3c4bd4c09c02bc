"""The convex fit against generic solvers, its optimality conditions, and its laws."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multiref.errors import ArgumentError
from multiref.weighting import fit_preferences


def world(seed, count=400, truth=(0.5, 0.0, 0.25), correlation=0.3):
    """Pairs whose preference follows σ(truth · m): rows are turned so that chosen was preferred."""
    random = np.random.default_rng(seed)
    shared = random.normal(size=count)
    m = np.stack([math.sqrt(1 - correlation) * random.normal(size=count) + math.sqrt(correlation) * shared for _ in truth]) * 3
    wins = random.random(count) < 1 / (1 + np.exp(-np.asarray(truth) @ m))
    return torch.from_numpy(np.where(wins, m, -m))


def slope(margins, c, ridge, counts=None):
    """The gradient of the objective at c, written out."""
    n = torch.ones(margins.shape[1]).double() if counts is None else counts
    wrong = 1 / (1 + torch.exp(c @ margins))
    return ridge * margins.square().mean(-1) * c - margins @ (n * wrong)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1e-3, 1e-2, 1.0]), st.integers(1, 5), st.sampled_from([3, 40, 400]))
def test_the_optimality_conditions_hold(seed, ridge, k, count):
    """c ≥ 0, slope = 0 where c > 0, slope ≥ 0 where c = 0: sufficient for the optimum, since the problem is convex."""
    margins = world(seed, count=count, truth=tuple(np.random.default_rng(seed).normal(size=k) / 3))
    fit = fit_preferences(margins, ridge=ridge)
    gradient = slope(margins, fit.coefficients, ridge) / margins.square().mean(-1).sqrt()
    free = fit.coefficients > 0
    assert (fit.coefficients >= 0).all()
    assert gradient[free].abs().max() < 1e-8 * count if free.any() else True
    assert (gradient[~free] > -1e-8 * count).all()
    assert fit.steps < 60


@pytest.mark.parametrize("seed", range(3))
def test_against_a_generic_convex_solver(seed):
    cvxpy = pytest.importorskip("cvxpy")
    margins = world(seed)
    c = cvxpy.Variable(3, nonneg=True)
    spread = margins.square().mean(-1).sqrt().numpy()
    loss = cvxpy.sum(cvxpy.logistic(-margins.numpy().T @ c)) + 0.005 * cvxpy.sum_squares(cvxpy.multiply(spread, c))
    cvxpy.Problem(cvxpy.Minimize(loss)).solve()
    assert fit_preferences(margins, ridge=0.01).coefficients.numpy() == pytest.approx(c.value, abs=2e-4)


def test_it_finds_the_truth_as_the_data_grow():
    """With 40,000 pairs the coefficients are within a few standard errors (about 0.01) of the truth,
    and the useless reference is near zero."""
    fit = fit_preferences(world(0, count=40_000))
    assert fit.coefficients.tolist() == pytest.approx([0.5, 0.0, 0.25], abs=0.03)
    assert fit.weights.tolist() == pytest.approx([2 / 3, 0.0, 1 / 3], abs=0.05)


def test_laws():
    margins = world(1)
    fit = fit_preferences(margins)
    assert torch.allclose(
        fit_preferences(margins[[2, 0, 1]]).coefficients, fit.coefficients[[2, 0, 1]], atol=1e-8
    )  # permutation
    assert torch.allclose(fit_preferences(10 * margins).coefficients, fit.coefficients / 10, atol=1e-8)  # units
    twice = fit_preferences(torch.cat([margins, margins], dim=1), ridge=0.02)  # n copies: n times the likelihood
    assert torch.allclose(twice.coefficients, fit.coefficients, atol=1e-8)
    assert torch.allclose(
        fit_preferences(margins, counts=torch.full((400,), 2.0), ridge=0.02).coefficients, fit.coefficients, atol=1e-8
    )
    split = fit_preferences(torch.cat([margins, margins[:1]]))  # the same reference twice shares its coefficient
    assert split.coefficients[0] == pytest.approx(float(split.coefficients[3]))
    assert float(split.coefficients[[0, 3]].sum()) == pytest.approx(float(fit.coefficients[0]), rel=1e-3)


def test_no_margin_helps():
    """Every reference prefers what was rejected: the scale is zero, and no weight is claimed to be best."""
    fit = fit_preferences(-world(2, truth=(0.5, 0.5, 0.5)).abs())
    assert fit.scale == 0 and fit.loss == pytest.approx(math.log(2)) and fit.weights.tolist() == pytest.approx([1 / 3] * 3)


def test_separated_data_have_a_finite_optimum():
    fit = fit_preferences(torch.ones(1, 10).double())
    assert 1 < fit.scale < 100 and fit.loss < 0.01


def test_nothing_at_all():
    assert fit_preferences(torch.zeros(2, 0)).scale == 0
    assert fit_preferences(torch.zeros(2, 5)).scale == 0
    with pytest.raises(ArgumentError, match="ridge is 0"):
        fit_preferences(torch.zeros(2, 5), ridge=0)


@pytest.mark.parametrize("counts", [torch.tensor([1.0, -1, 1]), torch.tensor([1.0, torch.nan, 1]), torch.ones(2)])
def test_counts_that_are_none(counts):
    with pytest.raises(ArgumentError, match="one ≥ 0 for each of 3 pairs"):
        fit_preferences(torch.ones(1, 3), counts=counts)
