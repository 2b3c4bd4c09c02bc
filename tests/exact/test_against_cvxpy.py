"""Against a generic convex solver, at its own tolerance: the problem is stated to it as it stands, reference by reference,
with no pool and no formula of ours."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings

import lazy_loader
import numpy as np
import pytest

from .instances import Instance, log_normalised, random_instance

cp = lazy_loader.load("cvxpy")  # two seconds, of whoever runs these tests
ALPHAS = (1.0, 0.0, 0.5, 2.0, -1.0, 1.5, 0.8, 3.0)
TOLERANCE = 2e-5


def problem(seed: int, alpha: float) -> Instance:
    """β in [0.05, 10], references ≥ 1e-6."""
    rng = np.random.default_rng(seed)
    instance = random_instance(rng, alpha, "plain")
    references = np.exp(instance.ref_logps[:, :12]) + 2e-6
    reward = instance.reward[:12] / max(1.0, np.abs(instance.reward).max())
    beta = float(10 ** rng.uniform(np.log10(0.05), 1))
    return dataclasses.replace(instance, reward=reward, ref_logps=log_normalised(np.log(references)), beta=beta)


def solved_generically(instance: Instance) -> tuple[np.ndarray, float] | None:
    """π and J(π) from the definition, by an interior-point method; None where it says itself that it did not get there."""
    policy = cp.Variable(len(instance.reward), nonneg=True)
    penalty = 0
    for weight, row in zip(instance.weights, np.exp(instance.ref_logps)):
        penalty = penalty + float(weight) * _divergence(policy, row, instance.alpha)
    objective = cp.Maximize(instance.reward @ policy - instance.beta * penalty)
    generic = cp.Problem(objective, [cp.sum(policy) == 1])
    with warnings.catch_warnings(), contextlib.suppress(cp.error.SolverError):
        warnings.simplefilter("ignore")
        generic.solve(solver=cp.CLARABEL)
    if generic.status != "optimal":
        return None
    return np.asarray(policy.value), float(generic.value)


def _divergence(policy, reference: np.ndarray, alpha: float):
    """D_α(π‖π_k) = (Σ π^α π_k^{1−α} − 1)/(α(α − 1)); the two KLs at 1 and 0."""
    if alpha == 1:
        return cp.sum(cp.rel_entr(policy, reference))
    if alpha == 0:
        return cp.sum(cp.rel_entr(reference, policy))
    return (cp.power(policy, alpha) @ reference ** (1 - alpha) - 1) / (alpha * (alpha - 1))


def check(seed: int, alpha: float) -> bool:
    """Whether the generic solver had an answer to compare with."""
    instance = problem(seed, alpha)
    generic = solved_generically(instance)
    if generic is None:
        return False
    policy, value = generic
    solution = instance.solve()
    unit = max(1.0, instance.beta, abs(value))
    assert solution.value.item() >= value - TOLERANCE * unit, f"the generic solver does better: {instance}"
    assert solution.value.item() == pytest.approx(value, abs=TOLERANCE * unit), str(instance)
    np.testing.assert_allclose(solution.log_policy.exp().numpy(), policy, rtol=0, atol=2e-3, err_msg=str(instance))
    return True


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_optimum(alpha):
    assert check(seed=0, alpha=alpha)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_optimum_at_length(alpha):
    assert sum(check(seed, alpha) for seed in range(1, 26)) >= 20


def test_the_corner():
    """Forward KL and α = ½ with the best reward outside every reference's support: the generic solver puts mass there too."""
    for alpha in (0.5, 0.3):
        instance = problem(3, alpha)
        logps = instance.ref_logps.copy()
        best = int(instance.reward.argmax())
        logps[:, best] = -np.inf
        reward = instance.reward.copy()
        reward[best] += 5.0
        instance = dataclasses.replace(instance, ref_logps=log_normalised(logps), reward=reward, beta=0.5)
        policy, value = solved_generically(instance)
        solution = instance.solve()
        assert policy[best] > 0.1
        assert solution.value.item() == pytest.approx(value, abs=1e-4)
        np.testing.assert_allclose(solution.log_policy.exp().numpy(), policy, rtol=0, atol=2e-3)
