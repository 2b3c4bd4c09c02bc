"""Laws of the exact solution, over random problems drawn by hypothesis."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import multiref as mr

from .instances import Instance, log_normalised, random_instance

law = settings(max_examples=30, deadline=None, derandomize=True)
ALPHAS = st.one_of(st.sampled_from([1.0, 0.0, 0.5, 2.0, -1.0, 3.0]), st.floats(-1.5, 4.0, allow_nan=False))
SOME_ALPHAS = pytest.mark.parametrize("alpha", [1.0, 0.0, 0.5, 2.0, -1.0, 1.3])


@st.composite
def problems(draw, kinds=("plain", "peaked", "zero weight", "padded"), alpha=ALPHAS) -> Instance:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    instance = random_instance(rng, draw(alpha), draw(st.sampled_from(kinds)))
    return dataclasses.replace(instance, beta=float(10 ** draw(st.floats(-2, 2))))


def policy(instance: Instance) -> np.ndarray:
    return instance.solve().log_policy.exp().numpy()


def same(first: Instance, second: Instance, shift: float = 0.0) -> None:
    """The same policy, and values and multipliers that differ by `shift`."""
    a, b = first.solve(), second.solve()
    unit = max(1.0, first.beta, first.scale, abs(shift), abs(a.value.item()), abs(a.multiplier.item()))
    np.testing.assert_allclose(b.log_policy.exp(), a.log_policy.exp(), rtol=0, atol=1e-9)
    assert b.value.item() == pytest.approx(a.value.item() + shift, abs=1e-11 * unit)
    assert b.multiplier.item() == pytest.approx(a.multiplier.item() + shift, abs=1e-11 * unit)


# --- the references -------------------------------------------------------------------------------------------------------


@law
@given(problems(), st.randoms(use_true_random=False))
def test_the_order_of_references_is_irrelevant(instance, random):
    order = list(range(len(instance.weights)))
    random.shuffle(order)
    same(instance, dataclasses.replace(instance, ref_logps=instance.ref_logps[order], weights=instance.weights[order]))


@law
@given(problems(), st.floats(0.0, 1.0))
def test_a_reference_split_in_two_is_the_same_reference(instance, share):
    k, w = 0, instance.weights
    weights = np.concatenate([[share * w[k], (1 - share) * w[k]], w[1:]])
    same(
        instance,
        dataclasses.replace(instance, ref_logps=np.concatenate([instance.ref_logps[:1], instance.ref_logps]), weights=weights),
    )


@law
@given(problems(), st.booleans())
def test_a_reference_of_weight_zero_is_absent(instance, impossible):
    """Whatever it says, a zero of probability included."""
    extra = np.random.default_rng(0).normal(size=(1, len(instance.reward)))
    if impossible:
        extra[0, 1:] = -np.inf
    references = np.concatenate([instance.ref_logps, log_normalised(extra)])
    same(instance, dataclasses.replace(instance, ref_logps=references, weights=np.append(instance.weights, 0.0)))


@law
@given(problems())
def test_one_reference_is_the_textbook_solution(instance):
    """K = 1: softmax(log π_0 + r/β) for reverse KL; for any α the stationarity of the single-reference problem."""
    single = dataclasses.replace(instance, ref_logps=instance.ref_logps[:1], weights=np.ones(1))
    kl = dataclasses.replace(single, alpha=1.0)
    textbook = torch.softmax(torch.from_numpy(kl.ref_logps[0] + kl.reward / kl.beta), -1)
    np.testing.assert_allclose(policy(kl), textbook, rtol=0, atol=1e-12)
    solution, a = single.solve(), single.alpha
    p, q = solution.log_policy.exp().numpy(), np.exp(single.ref_logps[0])
    kept = (p > 1e-9) & (q > 1e-100)
    with np.errstate(over="ignore"):
        slope = np.log(p[kept] / q[kept]) if abs(a - 1) < 1e-6 else ((p[kept] / q[kept]) ** (a - 1) - 1) / (a - 1)
    gain = single.reward[kept] - single.beta * slope
    unit = np.maximum(np.maximum(1.0, single.scale), single.beta * np.abs(slope))
    np.testing.assert_array_less(np.abs(gain - solution.multiplier.item()) / unit, 1e-9)


@law
@given(problems(alpha=st.just(1.0)))
def test_identical_references_make_weights_irrelevant(instance):
    references = np.repeat(instance.ref_logps[:1], 3, 0)
    a = dataclasses.replace(instance, ref_logps=references, weights=np.array([0.2, 0.3, 0.5]))
    for alpha in (1.0, 0.0, 0.5, 2.0):
        same(
            dataclasses.replace(a, alpha=alpha),
            dataclasses.replace(instance, alpha=alpha, ref_logps=references[:1], weights=np.ones(1)),
        )


# --- the reward -------------------------------------------------------------------------------------------------------------


@law
@given(problems(kinds=("plain", "peaked", "outside", "padded")), st.floats(-50, 50))
def test_a_shift_of_the_reward_shifts_the_value(instance, shift):
    """On rewards with 20 binary places, so that the shift itself rounds nothing."""
    reward, shift = np.round(instance.reward * 2**20) / 2**20, round(shift * 2**20) / 2**20
    same(dataclasses.replace(instance, reward=reward), dataclasses.replace(instance, reward=reward + shift), shift)


def test_where_no_strength_is_given_it_is_a_tenth():
    """β = 0.1 is every function's own, so that a value is that of its optimum."""
    refs, reward = torch.tensor([[0.7, 0.2, 0.1]]).double().log(), torch.tensor([0.0, 1.0, 0.3]).double()
    preference = torch.sigmoid(reward[:, None] - reward)
    for call in (
        lambda **given: mr.exact.solve(reward, refs, mr.ReverseKL(), **given).value,
        lambda **given: mr.exact.value(refs[0].roll(1), reward, refs, mr.ReverseKL(), **given),
        lambda **given: mr.exact.nash(preference, refs, mr.ReverseKL(), **given).value,
        lambda **given: mr.exact.duality_gap(refs[0].roll(1), preference, refs, mr.ReverseKL(), **given),
    ):
        assert float(call()) == float(call(beta=0.1)) != float(call(beta=0.2))


@pytest.mark.parametrize("alpha", [0.0, 0.5, -1.0, 0.999])
def test_ties_at_the_corner_share_evenly(alpha):
    """Two completions that no reference supports, equally rewarded: half of the left-over mass each, and all sums to one.
    Inside, λ = max r − β/(1 − α) leaves P ((1 − α)(max r − r)/β)^{1/(α − 1)}."""
    logps = torch.tensor([[0.5, 0.5, 0.0, 0.0, 0.0]], dtype=torch.float64).log()
    reward = torch.tensor([0.0, 1.0, 9.0, 9.0, 2.0], dtype=torch.float64) / (1 - alpha)
    policy = mr.exact.solve(reward, logps, mr.AlphaDivergence(alpha=alpha), beta=1.0).policy
    assert policy[2] == policy[3] > 0.1 and policy[4] == 0 and policy.sum().item() == pytest.approx(1.0, abs=1e-14)
    inside = 0.5 * torch.tensor([9.0, 8.0], dtype=torch.float64) ** (1 / (alpha - 1))
    torch.testing.assert_close(policy[:2], inside, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("alpha", [1.0, 1 + 1e-8, 1.3, 2.0, 3.0])
def test_what_is_vetoed_is_not_there(alpha):
    """α ≥ 1: a completion that one reference excludes changes nothing, to the last digits, however large its reward."""
    for seed in range(5):
        instance = random_instance(np.random.default_rng(seed), alpha, "plain")
        column = np.full((len(instance.weights), 1), -1.0)
        column[0] = -np.inf
        with_it = dataclasses.replace(
            instance, reward=np.append(instance.reward, 1e12), ref_logps=np.concatenate([instance.ref_logps, column], 1)
        )
        a, b = instance.solve(), with_it.solve()
        assert b.log_policy[-1] == -np.inf
        np.testing.assert_allclose(b.log_policy[:-1], a.log_policy, rtol=1e-13, atol=1e-13)
        assert b.value.item() == pytest.approx(a.value.item(), rel=1e-13) and b.multiplier.item() == pytest.approx(
            a.multiplier.item(), rel=1e-13
        )


@law
@given(problems(kinds=("plain", "peaked", "outside")), st.sampled_from([2.0**-5, 0.5, 4.0, 64.0]))
def test_reward_and_beta_in_other_units(instance, c):
    """(c r, c β) has the policy of (r, β) and c times its value."""
    a, b = instance.solve(), dataclasses.replace(instance, reward=c * instance.reward, beta=c * instance.beta).solve()
    np.testing.assert_allclose(b.log_policy.exp(), a.log_policy.exp(), rtol=0, atol=1e-10)
    assert b.value.item() == pytest.approx(c * a.value.item(), rel=1e-10, abs=1e-11 * c * max(instance.beta, instance.scale))


# --- strengths ----------------------------------------------------------------------------------------------------------------


@SOME_ALPHAS
def test_a_large_beta_gives_the_normalised_pool(alpha):
    """β → ∞: π* → P/Σ P, at the rate max|r|/β."""
    for seed in range(5):
        instance = dataclasses.replace(random_instance(np.random.default_rng(seed), alpha, "plain"), beta=1e9)
        _, ref_logps = instance.tensors
        pool = mr.pools.power_pool(ref_logps, instance.weights.tolist(), 1 - alpha).softmax(-1)
        np.testing.assert_allclose(policy(instance), pool, rtol=0, atol=1e-5)


@SOME_ALPHAS
@pytest.mark.parametrize("kind", ["plain", "outside", "vetoed"])
def test_a_small_beta_takes_the_best_reward(alpha, kind):
    """β → 0: all mass on the best reward, in the pool's support for α ≥ 1, anywhere for α < 1 (at α = −1 as slowly as √β)."""
    for seed in range(5):
        instance = dataclasses.replace(random_instance(np.random.default_rng(seed), alpha, kind), beta=1e-12)
        allowed = np.isfinite(instance.reward)
        if alpha >= 1:
            allowed &= np.isfinite(instance.ref_logps[instance.weights > 0]).all(0)
        best = np.where(allowed, instance.reward, -np.inf).argmax()
        solution = instance.solve()
        assert solution.log_policy[best].exp().item() == pytest.approx(1.0, abs=1e-3)
        assert solution.value.item() == pytest.approx(instance.reward[best], abs=1e-4)


def test_each_reference_with_a_strength_of_its_own():
    """E_π r − Σ_k β_k KL(π‖π_k), written out, is largest at the solution with β = Σ β_k, w_k = β_k/β (docs/theory.md 1 e)."""
    rng = np.random.default_rng(5)
    strengths, refs = np.array([0.1, 0.7, 0.4]), log_normalised(rng.normal(size=(3, 6)))
    reward, beta = rng.normal(size=6), strengths.sum()

    def objective(log_policy):
        each = (np.exp(log_policy) * (log_policy - refs)).sum(-1)
        return np.exp(log_policy) @ reward - strengths @ each

    best = mr.exact.solve(torch.from_numpy(reward), torch.from_numpy(refs), mr.ReverseKL(strengths / beta), beta=beta)
    assert objective(best.log_policy.numpy()) == pytest.approx(best.value.item(), abs=1e-14)
    for size in (1e-6, 1e-2, 1.0):
        other = log_normalised(best.log_policy.numpy() + size * rng.normal(size=6))
        assert objective(other) < best.value.item()


# --- the family ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("near, member", [(1.0, mr.ReverseKL), (0.0, mr.ForwardKL)])
@pytest.mark.parametrize("kind", ["plain", "peaked", "zero weight", "padded"])
def test_alpha_meets_the_named_members(near, member, kind):
    """AlphaDivergence at α itself is the member, and at α ± ε it is ε-close: policy, value, multiplier, pool, penalty,
    implicit reward."""
    instance = dataclasses.replace(random_instance(np.random.default_rng(4), near, kind), beta=0.7)
    weights, (reward, ref_logps) = tuple(instance.weights.tolist()), instance.tensors
    named, other = member(weights), torch.randn(len(reward), generator=torch.Generator().manual_seed(0)).double()
    other = torch.where(reward > -np.inf, other, -np.inf).log_softmax(-1)
    a = mr.exact.solve(reward, ref_logps, named, beta=0.7)
    for epsilon, tolerance in ((0.0, 1e-12), (1e-8, 1e-4), (-1e-8, 1e-4), (1e-4, 1.0), (-1e-4, 1.0)):
        regularizer = mr.AlphaDivergence(weights, alpha=near + epsilon)
        b = mr.exact.solve(reward, ref_logps, regularizer, beta=0.7)
        np.testing.assert_allclose(b.log_policy.exp(), a.log_policy.exp(), atol=tolerance * 0.05, rtol=0)
        assert b.value.item() == pytest.approx(a.value.item(), abs=tolerance)
        assert b.multiplier.item() == pytest.approx(a.multiplier.item(), abs=tolerance)
        assert regularizer.penalty(other, ref_logps).item() == pytest.approx(
            named.penalty(other, ref_logps).item(), abs=tolerance
        )


@law
@given(problems(kinds=("plain", "peaked", "zero weight")))
def test_harmonic_below_geometric_below_arithmetic(instance):
    """Power means grow with their order, entry by entry."""
    _, ref_logps = instance.tensors
    pools = [mr.pools.power_pool(ref_logps, instance.weights.tolist(), order) for order in (-3, -1, -1e-3, 0, 1e-3, 1, 3)]
    for lower, higher in pairwise(pools):
        assert (lower <= higher + 1e-12 * (1 + higher.abs())).all()


# --- identities of reverse KL (docs/theory.md 1)
# ------------------------------------------------------------------------------------------


@law
@given(problems(kinds=("plain", "peaked", "zero weight", "padded"), alpha=st.just(1.0)), st.integers(0, 1000))
def test_regret_is_a_divergence(instance, seed):
    """J* − J(π) = β KL(π‖π*), for every π."""
    reward, ref_logps = instance.tensors
    solution = instance.solve()
    other = torch.from_numpy(np.random.default_rng(seed).normal(size=len(reward)))
    other = torch.where(reward > -np.inf, other, -np.inf).log_softmax(-1)
    regret = solution.value - mr.exact.value(other, reward, ref_logps, instance.regularizer, beta=instance.beta)
    divergence = instance.beta * mr.divergences.kl(other, solution.log_policy)
    unit = max(1.0, instance.beta, instance.scale, divergence.item())
    assert abs(regret.item() - divergence.item()) <= 1e-12 * unit


@law
@given(problems(kinds=("plain", "padded", "outside"), alpha=st.just(0.0)), st.integers(0, 1000))
def test_the_gap_of_forward_kl(instance, seed):
    """J* − J(π) = β E_P[φ(π/π*)] + Σ_{P = 0} π (Z − r), φ(u) = u − 1 − log u, Z = λ + β (docs/theory.md 2): corners included.
    J* = Z − β − β E_P log((Z − r)/β) − β JS."""
    reward, ref_logps = instance.tensors
    solution = instance.solve()
    other = torch.from_numpy(np.random.default_rng(seed).normal(size=len(reward)))
    other = torch.where(reward > -np.inf, other, -np.inf).log_softmax(-1)
    gap = (solution.value - mr.exact.value(other, reward, ref_logps, instance.regularizer, beta=instance.beta)).item()
    mixture = (torch.from_numpy(instance.weights)[:, None] * ref_logps.exp()).sum(0)
    u = torch.where(mixture > 0, other - solution.log_policy, 0.0)
    below = solution.multiplier + instance.beta - reward
    outside = torch.where((mixture == 0) & (reward > -np.inf), other.exp() * below, 0.0).sum().item()
    expected = instance.beta * (mixture * (torch.expm1(u) - u)).sum().item() + outside
    assert gap == pytest.approx(expected, abs=1e-11 * max(1.0, instance.beta, instance.scale, expected))
    spread = sum(w * mr.divergences.kl(row, mixture.log()) for w, row in zip(instance.weights, ref_logps) if w > 0)
    logs = torch.where(mixture > 0, mixture * (below / instance.beta).log(), 0.0).sum()
    value = solution.multiplier - instance.beta * (logs + spread)
    assert solution.value.item() == pytest.approx(value.item(), abs=1e-11 * max(1.0, instance.beta, instance.scale))


@law
@given(problems(kinds=("plain", "peaked", "zero weight", "vetoed", "padded"), alpha=st.just(1.0)))
def test_merging_single_reference_optima(instance):
    """π*_w ∝ Π_k (π*_k)^{w_k}, the K optima with the same reward and β."""
    reward, ref_logps = instance.tensors
    singles = torch.stack(
        [mr.exact.solve(reward, row[None], mr.ReverseKL(), beta=instance.beta).log_policy for row in ref_logps]
    )
    merged = mr.exact.merge(singles, instance.weights.tolist())
    np.testing.assert_allclose(merged.exp(), instance.solve().log_policy.exp(), rtol=0, atol=1e-11)


@law
@given(problems(kinds=("plain", "peaked"), alpha=st.just(1.0)), st.floats(0.0, 1.0))
def test_the_value_is_convex_in_the_weights(instance, mix):
    """J*(t w + (1 − t) v) ≤ t J*(w) + (1 − t) J*(v): a supremum of functions linear in w.
    So mixing never beats the best single reference."""
    rng = np.random.default_rng(1)
    for alpha in (1.0, 0.0, 0.5, 2.0):
        first = dataclasses.replace(instance, alpha=alpha)
        second = dataclasses.replace(first, weights=rng.dirichlet(np.ones(len(instance.weights))))
        between = dataclasses.replace(first, weights=mix * first.weights + (1 - mix) * second.weights)
        a, b, c = (x.solve().value.item() for x in (first, second, between))
        assert c <= mix * a + (1 - mix) * b + 1e-11 * max(1.0, instance.beta, abs(a), abs(b))
        alone = max(
            dataclasses.replace(first, ref_logps=row[None], weights=np.ones(1)).solve().value.item() for row in first.ref_logps
        )
        assert a <= alone + 1e-11 * max(1.0, instance.beta, abs(alone))


@law
@given(problems(kinds=("plain", "outside", "zero weight")), st.integers(0, 1000))
def test_nothing_beats_the_optimum(instance, seed):
    """J(π) ≤ J* at random policies near and far, for every α, corners included."""
    reward, ref_logps = instance.tensors
    solution, rng = instance.solve(), np.random.default_rng(seed)
    for size in (1e-3, 0.1, 3.0):
        noise = torch.from_numpy(rng.normal(size=len(reward))) * size
        for other in (
            (solution.log_policy.clamp_min(-200) + noise).log_softmax(-1),
            (solution.log_policy + noise).log_softmax(-1),
        ):
            other = torch.where(reward > -np.inf, other, -np.inf).log_softmax(-1)
            value = mr.exact.value(other, reward, ref_logps, instance.regularizer, beta=instance.beta)
            assert value.item() <= solution.value.item() + 1e-11 * max(
                1.0, instance.beta, instance.scale, abs(solution.value.item())
            )


def test_the_price_of_disagreement():
    """−log F = min_q Σ_k w_k KL(q‖π_k) = −J* at r = 0, β = 1; a reward never costs more than that."""
    for seed in range(10):
        instance = random_instance(np.random.default_rng(seed), 1.0, "plain")
        _, ref_logps = instance.tensors
        nothing = dataclasses.replace(instance, reward=np.zeros_like(instance.reward), beta=1.0)
        price = mr.divergences.disagreement(ref_logps, instance.weights.tolist()).item()
        assert -nothing.solve().value.item() == pytest.approx(price, abs=1e-12)
        assert price >= -1e-15
