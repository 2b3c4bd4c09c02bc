"""The marks: against fifty digits, values to 1e-12 · max(1, β, max|r|), probabilities to 1e-12, in float64.

One widening, where the number itself forbids the mark: with α > 1 and references that exclude each other the best value is as
low as −1e90, and a float64 of that size is not known to 1e-12. There the mark is relative: 1e-12 · |value|.
One exception, where the problem forbids it: a completion that α > 1 has all but truncated moves by more than 1e-12 when the
last bit of a reward does; there the mark is what half a bit does, doubled.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import multiref as mr

from . import witness
from .instances import NAMED_ALPHAS, Instance, instances, log_normalised, random_instance

MARK = 1e-12


def unit(instance: Instance, *numbers: float) -> float:
    return max(1.0, instance.beta, instance.scale, *(abs(float(x)) for x in numbers))


def check_optimum(instance: Instance, solution, truth: witness.Optimum) -> None:
    """Value, multiplier and probabilities to the mark; log-probabilities too, so that a tail of 1e-200 counts as well."""
    value_error = abs(witness.MP.mpf(solution.value.item()) - truth.value)
    assert value_error <= MARK * unit(instance, truth.value), f"value of {instance}: off by {float(value_error):.2g}"
    multiplier_error = abs(witness.MP.mpf(solution.multiplier.item()) - truth.multiplier)
    assert multiplier_error <= MARK * unit(instance, truth.multiplier), f"λ of {instance}: off by {float(multiplier_error):.2g}"
    policy = solution.log_policy.exp().numpy()
    expected = np.array([float(p) for p in truth.policy])
    error = np.abs(policy - expected)
    assert (error <= np.maximum(MARK, 2 * half_a_bit(instance, truth))).all(), (
        f"probabilities of {instance}: off by {error.max():.2g}"
    )
    seen = expected > 1e-290
    log_error = np.abs(solution.log_policy.numpy()[seen] - np.log(expected[seen])) / np.maximum(
        1, np.abs(np.log(expected[seen]))
    )
    sound = log_error <= 1e-10 * np.maximum(1, 2 * instance.scale / instance.beta * 1e-4)
    assert (sound | _at_the_edge(instance, truth)[seen]).all(), f"log-probabilities of {instance}: off by {log_error.max():.2g}"


def half_a_bit(instance: Instance, truth: witness.Optimum) -> np.ndarray:
    """[Y]: how far π*(y) moves when a reward moves by half a unit in its last place:
    dπ = π/(β x) dr, x = 1 + (α − 1)(r − λ)/β."""
    mp, moved = witness.MP, np.zeros(len(instance.reward))
    for y, p in enumerate(truth.policy):
        if p > 0 and instance.alpha > 1:
            x = 1 + (mp.mpf(instance.alpha) - 1) * (mp.mpf(instance.reward[y]) - truth.multiplier) / instance.beta
            moved[y] = float(p / (x * instance.beta)) * 0.5 * np.spacing(instance.scale)
    return np.full_like(moved, moved.max())


def _at_the_edge(instance: Instance, truth: witness.Optimum) -> np.ndarray:
    """Where α > 1 has all but truncated a completion, its logarithm is as ill-conditioned as log x at x → 0."""
    if instance.alpha <= 1:
        return np.zeros(len(instance.reward), bool)
    slope = (instance.alpha - 1) / instance.beta
    x = 1 + slope * (instance.reward - float(truth.multiplier))
    return np.abs(x) < 1e-4 * (1 + slope * (instance.scale + abs(float(truth.multiplier))))


def check_instance(instance: Instance) -> None:
    truth = witness.optimum(instance.reward, instance.ref_logps, instance.weights, instance.alpha, instance.beta)
    check_optimum(instance, instance.solve(), truth)


@pytest.mark.parametrize("batch", range(4))
def test_the_optimum(batch):
    for instance in instances(20, seed=batch):
        check_instance(instance)


@pytest.mark.parametrize("alpha", NAMED_ALPHAS)
def test_the_optimum_of_every_named_alpha_in_every_corner(alpha):
    rng = np.random.default_rng(7)
    for kind in ("plain", "peaked", "vetoed", "outside", "padded", "zero weight", "disjoint"):
        check_instance(random_instance(rng, alpha, kind))


@pytest.mark.parametrize("alpha", [a for a in NAMED_ALPHAS if a < 1] + [0.9, 0.997])
def test_the_corner(alpha):
    """The best reward outside every reference's support, from just better to far better than the price β/(1 − α) of a unit of
    mass there."""
    corners = 0
    for seed, lift in enumerate((0.01, 0.3, 0.9, 1.1, 3.0, 100.0)):
        instance = random_instance(np.random.default_rng(seed), alpha, "outside")
        outside = np.isneginf(instance.ref_logps).all(0)
        reward = np.where(outside, instance.reward - 2 * instance.scale, instance.reward)
        reward[outside.argmax()] = instance.reward[~outside].max() + lift * instance.beta / (1 - alpha)
        instance = dataclasses.replace(instance, reward=reward)
        check_instance(instance)
        corners += bool(instance.solve().log_policy[outside.argmax()] > -np.inf)
    assert corners >= 2


@pytest.mark.parametrize("alpha", [0.5, 0.75, 0.9, 0.997, 1 - 1e-8, 1.0, 1 + 1e-8, 1.1, 1.25, 2.0])
def test_references_hundreds_of_nats_apart(alpha):
    """Whole completions: log-probabilities spread over 300 nats, the best reward where there is least mass."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        logps = log_normalised(rng.uniform(-300, 0, size=(2, 12)))
        reward = np.sort(rng.normal(size=12))[np.argsort(np.argsort(-logps.sum(0)))] * 5
        check_instance(Instance(reward, logps, np.array([0.3, 0.7]), float(10 ** rng.uniform(-2, 1)), alpha, "deep"))


@pytest.mark.parametrize("alpha", [3.0, 6.0, 13.0, 41.0, 201.0])
@pytest.mark.parametrize("ulps", [0, 3, 2000])
def test_a_completion_next_to_its_kink(alpha, ulps):
    """Where b is 1e-16, b^{1/40} is 0.4: digits of b that no float64 has decide the mass, so that it must come from the others.
    α = 13 was 0.17 off, α = 201 0.34.

    One flat reference P, β = 1, a = α − 1. The last completion has b = u, the others u + a (r − r_last): found here in log u,
    so that u has all its digits. Its reward is a few units in the last place from where its mass begins.
    """
    mp, a = witness.MP, witness.MP.mpf(alpha - 1)
    pool = mp.exp(mp.mpf(float(np.log(0.25))))
    reward = np.array([0.0, -0.5 / float(a), -0.5 / float(a), 0.0])

    def masses(u, last):
        bases = [u + a * (mp.mpf(float(r)) - last) for r in reward[:3]] + [u]
        return [pool * max(b, mp.mpf(0)) ** (1 / a) for b in bases]

    low, high = -(mp.mpf(4) ** a), mp.mpf(0)
    for _ in range(600):
        middle = (low + high) / 2
        low, high = (middle, high) if mp.fsum(masses(mp.mpf(0), middle)) > 1 else (low, middle)
    reward[3] = float(low)
    reward[3] += ulps * np.spacing(abs(reward[3]))
    low, high = mp.mpf(-30_000), mp.mpf(300)
    for _ in range(300):
        middle = (low + high) / 2
        low, high = (low, middle) if mp.fsum(masses(mp.exp(middle), mp.mpf(float(reward[3])))) > 1 else (middle, high)
    refs, rule = torch.full((1, 4), 0.25).double().log(), mr.AlphaDivergence(alpha=alpha)
    truth = [float(p) for p in masses(mp.exp(low), mp.mpf(float(reward[3])))]
    for given in (torch.from_numpy(reward), torch.from_numpy(reward).requires_grad_()):
        assert mr.exact.solve(given, refs, rule, beta=1.0).policy.tolist() == pytest.approx(truth, rel=0, abs=1e-13)


def test_what_is_out_of_play_takes_nothing_at_the_kink():
    """α = 1.5, one completion in play, the other padded by its reward alone."""
    reward, refs = torch.tensor([0.3, -torch.inf]).double(), torch.full((2, 2), 0.5).double().log()
    assert mr.exact.solve(reward, refs, mr.AlphaDivergence(alpha=1.5), beta=0.2).policy.tolist() == [1.0, 0.0]


def test_a_best_reward_of_tiny_mass():
    """The mode has the least reward, the best reward 1e-27 of the mass: the multiplier is far from what decides,
    and mass and value still hold to the mark."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        logits = np.append(rng.uniform(-69, -60, size=29), 0.0)
        reward = np.append(rng.uniform(-9, 9, size=29), -8.7862515945598)
        alpha, beta = float(rng.uniform(1.1, 1.2)), float(rng.uniform(0.01, 0.02))
        check_instance(Instance(reward, log_normalised(logits[None]), np.ones(1), beta, alpha, "tiny"))


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(8))
def test_the_optimum_at_length(batch):
    for instance in instances(500, seed=1000 + batch):
        check_instance(instance)


@pytest.mark.parametrize("order", [-1, 0, 1, 0.5, -2.5])
def test_the_pooled_objective(order):
    """PooledKL: reverse KL to a pool of any order; its penalty is to the unnormalised pool, a bound on Σ_k w_k KL at order
    −1."""
    rng = np.random.default_rng(3)
    for instance in (random_instance(rng, 1.0) for _ in range(12)):
        weights = instance.weights.tolist()
        reward, ref_logps = instance.tensors
        solution = mr.exact.solve(reward, ref_logps, mr.PooledKL(tuple(weights), order=order), beta=instance.beta)
        truth = witness.pooled_optimum(instance.reward, instance.ref_logps, weights, order, instance.beta)
        check_optimum(instance, solution, truth)
        assert abs(float(truth.multiplier) / instance.beta - solution.log_partition.item()) <= MARK * unit(
            instance, truth.multiplier / instance.beta
        )


@pytest.mark.parametrize("order", [-1, 0, 1, 0.5])
def test_the_pooled_objective_at_any_policy(order):
    """E_π[r] − β E_π[log π/P_ρ], at policies with and without zeros."""
    rng = np.random.default_rng(13)
    for kind in ("plain", "zero weight", "padded"):
        instance = random_instance(rng, 1.0, kind)
        log_policy = log_normalised(np.where(np.isfinite(instance.reward), rng.normal(size=instance.reward.shape) * 2, -np.inf))
        policy, weights = [witness.MP.exp(v) for v in witness.exact(log_policy)], tuple(instance.weights.tolist())
        truth = witness.pooled_objective(policy, instance.reward, instance.ref_logps, weights, order, instance.beta)
        regularizer = mr.PooledKL(weights, order=order)
        found = mr.exact.value(torch.from_numpy(log_policy), *instance.tensors, regularizer, beta=instance.beta).item()
        assert abs(witness.MP.mpf(found) - truth) <= MARK * unit(instance, truth), str(instance)


def test_the_log_partition_is_of_the_unnormalised_pool():
    """log Σ_y P_0 e^{r/β}, that is log F + log Z of the papers."""
    for instance in (random_instance(np.random.default_rng(5), 1.0) for _ in range(10)):
        truth = witness.optimum(instance.reward, instance.ref_logps, instance.weights, 1.0, instance.beta)
        expected = float(truth.multiplier / witness.MP.mpf(instance.beta))
        assert instance.solve().log_partition.item() == pytest.approx(expected, rel=1e-13, abs=1e-12)


@pytest.mark.parametrize("alpha", NAMED_ALPHAS)
def test_the_objective_at_any_policy(alpha):
    """exact.value against E_π[r] − β Σ_k w_k D_α(π‖π_k) summed reference by reference, at policies with and without zeros."""
    rng = np.random.default_rng(11)
    for kind in ("plain", "zero weight", "outside", "padded", "plain"):
        instance = random_instance(rng, alpha, kind)
        log_policy = log_normalised(np.where(np.isfinite(instance.reward), rng.normal(size=instance.reward.shape) * 2, -np.inf))
        dropped = rng.integers(len(log_policy))
        if kind == "plain" and np.isfinite(log_policy).sum() > 2:
            log_policy[dropped] = -np.inf
            log_policy = log_normalised(log_policy)
        policy = [witness.MP.exp(v) for v in witness.exact(log_policy)]
        truth = witness.objective(policy, instance.reward, instance.ref_logps, instance.weights, alpha, instance.beta)
        reward, ref_logps = instance.tensors
        found = mr.exact.value(torch.from_numpy(log_policy), reward, ref_logps, instance.regularizer, beta=instance.beta).item()
        if not np.isfinite(float(truth)):
            assert found == float(truth), f"{instance}: expected {truth}, found {found}"
        else:
            assert abs(witness.MP.mpf(found) - truth) <= MARK * unit(instance, truth), str(instance)


def test_the_witness_itself():
    """Stationarity per reference at the witness's optimum, r − β Σ_k w_k f'(π/π_k) = λ on its support and ≤ λ off it,
    and nothing near it is better."""
    mp, rng = witness.MP, np.random.default_rng(2)
    for instance in instances(40, seed=99):
        truth = witness.optimum(instance.reward, instance.ref_logps, instance.weights, instance.alpha, instance.beta)
        assert abs(mp.fsum(truth.policy) - 1) < mp.mpf(10) ** -30
        for y, p in enumerate(truth.policy):
            if not np.isfinite(instance.reward[y]):
                assert p == 0
                continue
            gain = mp.mpf(instance.reward[y]) - instance.beta * _marginal(instance, y, p)
            gap = (gain - truth.multiplier) / max(1, abs(truth.multiplier), instance.beta)
            assert (abs(gap) if p > 0 else gap) < mp.mpf(10) ** -25, f"{instance}: {y}, {mp.nstr(gap)}"
        nudged = [p * mp.mpf(1 + 0.01 * rng.normal()) for p in truth.policy]
        nudged = [p / mp.fsum(nudged) for p in nudged]
        assert (
            witness.objective(nudged, instance.reward, instance.ref_logps, instance.weights, instance.alpha, instance.beta)
            <= truth.value
        )


def _marginal(instance: Instance, y: int, p):
    """Σ_k w_k f'(p/π_k(y)), with the limits at π_k(y) = 0 and p = 0."""
    mp, total = witness.MP, witness.ZERO
    a = mp.mpf(instance.alpha)
    for w, lp in zip(witness.simplex(instance.weights), witness.exact(instance.ref_logps[:, y])):
        if w == 0:
            continue
        if lp == -mp.inf:
            if a >= 1:
                assert p == 0  # vetoed
                return mp.inf
            total += w / (1 - a)
        elif p == 0:
            total += w * (-mp.inf if a <= 1 else -1 / (a - 1))
        else:
            total += w * (mp.log(p) - lp if a == 1 else (mp.exp((a - 1) * (mp.log(p) - lp)) - 1) / (a - 1))
    return total
