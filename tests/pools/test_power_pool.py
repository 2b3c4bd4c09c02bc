"""The power mean of K references in log space, against fifty digits and against its own laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import multiref as mr
from tests.exact import witness
from tests.exact.instances import log_normalised

NEG_INF = -math.inf
ORDERS = [0.0, 1.0, -1.0, 2.0, -3.0, 0.5, -0.3, 0.05, -0.05, 0.0499, 1e-2, 1e-4, -1e-4, 1e-8, -1e-8, 1e-12, -1e-15]


def pool(logps, weights, order) -> np.ndarray:
    return mr.pools.power_pool(torch.as_tensor(np.asarray(logps, dtype=np.float64)), weights, order).numpy()


def assert_exact(logps, weights, order, tolerance: float = 1e-13) -> None:
    truth = witness.log_pool(logps, weights, order)
    for found, expected in zip(pool(logps, weights, order), truth):
        if expected == -witness.MP.inf:
            assert found == NEG_INF
        else:
            assert abs(witness.MP.mpf(float(found)) - expected) <= tolerance * max(1, abs(expected)), (order, found, expected)


@pytest.mark.parametrize("order", ORDERS)
def test_against_fifty_digits(order):
    """Ordinary references, references as peaked as 1e-30, and spreads of 300 nats between references."""
    rng = np.random.default_rng(0)
    for k in (1, 2, 3, 5):
        weights = rng.dirichlet(np.ones(k)).tolist()
        assert_exact(log_normalised(rng.normal(size=(k, 20))), weights, order)
        assert_exact(rng.uniform(-69, 0, size=(k, 20)), weights, order)
        assert_exact(rng.uniform(-300, 0, size=(k, 40)), weights, order)
        assert_exact(np.where(rng.random((k, 40)) < 0.5, -300.0, -1.0) + rng.uniform(-1, 0, size=(k, 40)), weights, order)


@pytest.mark.parametrize("order", ORDERS)
def test_zero_mass_and_zero_weight(order):
    """log-probability −inf vetoes for order ≤ 0 and not for order > 0; a reference of weight zero is absent, veto and all."""
    logps = [
        [math.log(0.5), NEG_INF, math.log(0.5), NEG_INF],
        [math.log(0.2), math.log(0.8), NEG_INF, NEG_INF],
        [NEG_INF, -1.0, -3.0, 0.0],
    ]
    for weights in ([0.4, 0.6, 0.0], [0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]):
        assert_exact(logps, weights, order)
    found = pool(logps, [0.4, 0.6, 0.0], order)
    assert (found[1] == NEG_INF) == (order <= 0) and found[3] == NEG_INF
    np.testing.assert_allclose(found, pool(logps[:2], [0.4, 0.6], order), rtol=1e-14)


def test_by_hand():
    """π_1 = ½, π_2 = 1/8, equal weights: arithmetic 5/16, geometric ¼, harmonic 1/((2 + 8)/2) = 1/5, quadratic √(17/128)."""
    logps = np.log([[0.5], [0.125]])
    for order, expected in ((1, 5 / 16), (0, 0.25), (-1, 0.2), (2, math.sqrt(17 / 128))):
        assert math.exp(pool(logps, None, order)[0]) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("order", [-1.0, 0.0, 1e-9, 0.5, 1.0])
def test_homogeneous_and_between_the_extremes(order):
    """Scaling every reference scales the pool; the pool lies between the least and the greatest reference."""
    rng = np.random.default_rng(1)
    logps, weights = rng.uniform(-50, -10, size=(4, 30)), [0.1, 0.2, 0.3, 0.4]
    found = pool(logps, weights, order)
    np.testing.assert_allclose(pool(logps - 7.0, weights, order), found - 7.0, rtol=0, atol=1e-12)
    assert (found >= logps.min(0) - 1e-12).all() and (found <= logps.max(0) + 1e-12).all()


def test_continuous_in_the_order():
    """Across every threshold of the implementation: the derivative in the order stays ½ Var_w(log π_k) near zero,
    and never jumps."""
    rng = np.random.default_rng(2)
    logps, weights = rng.uniform(-40, 0, size=(3, 10)), np.array([0.2, 0.3, 0.5])
    mean = weights @ logps
    slope = 0.5 * (weights @ (logps - mean) ** 2)
    for order in (1e-6, -1e-6):
        np.testing.assert_allclose((pool(logps, weights.tolist(), order) - mean) / order, slope, rtol=1e-3)
    grid = [pool(logps, weights.tolist(), order) for order in np.linspace(-0.2, 0.2, 801)]
    steps = np.diff(np.array(grid), axis=0)
    assert (steps >= -1e-13).all() and (np.abs(np.diff(steps, axis=0)) < 0.03).all()


def test_any_example_shape_and_weights_per_example():
    rng = np.random.default_rng(3)
    logps = torch.from_numpy(rng.uniform(-9, 0, size=(3, 2, 4, 5)))
    for shape in ((3, 2), (3, 2, 4), (3, 2, 4, 5)):
        weights = torch.from_numpy(np.moveaxis(rng.dirichlet(np.ones(3), size=shape[1:]), -1, 0).copy())
        for order in (-1.0, 0.0, 1e-8, 1.0):
            whole = mr.pools.power_pool(logps, weights, order)
            assert whole.shape == (2, 4, 5)
            for i in np.ndindex(*shape[1:]):
                single = mr.pools.power_pool(logps[(slice(None), *i)], weights[(slice(None), *i)], order)
                torch.testing.assert_close(whole[i], single, rtol=1e-14, atol=1e-14)


def test_summed_log_probabilities_of_whole_completions():
    """At −5,000 nats, where probabilities underflow, the geometric pool is still linear and the others track their extremes."""
    logps = np.array([[-5000.0], [-5300.0]])
    assert pool(logps, [0.25, 0.75], 0)[0] == -5225.0
    assert pool(logps, [0.25, 0.75], 1)[0] == pytest.approx(-5000 + math.log(0.25), abs=1e-12)
    assert pool(logps, [0.25, 0.75], -1)[0] == pytest.approx(-5300 - math.log(0.75), abs=1e-12)


@pytest.mark.parametrize("order", [-1.0, 0.0, 0.01, 1.0])
@pytest.mark.parametrize("weights", [(0.5, 0.3, 0.2), (0.6, 0.4, 0.0)])
def test_half_precision_is_rounded_on_the_way_in_alone(order, weights):
    """bfloat16 has three digits: weights and sums in it were a quarter of a nat off at −50. Float32 is the pool."""
    logps = (-50 * torch.rand(3, 40, generator=torch.Generator().manual_seed(0))).to(torch.bfloat16)
    found = mr.pools.power_pool(logps, weights, order)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), mr.pools.power_pool(logps.double(), weights, order), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("order", [-3.0, -1.0, 0.01, 2.0])
def test_an_absent_reference_far_above_the_others_in_few_bits(order, dtype):
    """e^{|order| · 60} and more is no number of these; its weight is zero, and the pool is the other reference."""
    logps = torch.tensor([[-80.0, -0.5, -30.0], [-0.25, -90.0, -2.0]], dtype=dtype)
    found = mr.pools.power_pool(logps, [0.0, 1.0], order)
    torch.testing.assert_close(found.float(), logps[1].float(), rtol=1e-2, atol=1e-2)
