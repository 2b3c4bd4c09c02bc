"""`FDivergence`: a divergence given by its derivative alone. Against the α-family, a convex solver, closed forms."""

import math
import pickle

import lazy_loader
import numpy as np
import pytest
import torch

import multiref as mr
from multiref.errors import ArgumentError, EmptyPoolError, MultirefWarning
from multiref.training import PairLogps, Preference

from .instances import random_instance

cp = lazy_loader.load("cvxpy")
JS, JEFFREYS = mr.FDivergence.jensen_shannon, mr.FDivergence.jeffreys
AS_F = {
    2.0: mr.FDivergence(lambda t: t - 1, -1, math.inf),  # half of χ²
    0.5: mr.FDivergence(lambda t: 2 * (1 - t**-0.5), -math.inf, 2),
    0.0: mr.FDivergence(lambda t: 1 - 1 / t, -math.inf, 1),
    1.0: mr.FDivergence(torch.log, -math.inf, math.inf),
}


def batch(alpha: float, kinds: str, rows: int):
    """Instances of these kinds side by side, padded; each with its own weights."""
    rng = np.random.default_rng(3)
    found = [random_instance(rng, alpha, kind) for kind in kinds.split(", ") for _ in range(rows)]
    k, y = max(len(i.weights) for i in found), max(len(i.reward) for i in found)
    reward, refs = np.full((len(found), y), -np.inf), np.full((k, len(found), y), -np.inf)
    weights = np.zeros((k, len(found)))
    for row, each in enumerate(found):
        n, m = each.ref_logps.shape
        reward[row, :m], refs[:n, row, :m], weights[:n, row] = each.reward, each.ref_logps, each.weights
    reward = reward / np.abs(np.where(np.isfinite(reward), reward, 0)).max(-1, keepdims=True)
    return *map(torch.from_numpy, (reward, refs)), torch.from_numpy(weights)


@pytest.mark.parametrize("alpha", AS_F)
def test_the_alpha_family_given_as_an_f(alpha):
    """Truncation (α = 2), corner (α = ½ and 0, rewards outside all references), vetoes, absent references, padding."""
    reward, refs, weights = batch(alpha, "plain, vetoed, outside, padded, zero weight", rows=2)
    known = mr.exact.solve(reward, refs, mr.AlphaDivergence(weights, alpha=alpha), beta=0.2)
    found = mr.exact.solve(reward, refs, AS_F[alpha].with_weights(weights), beta=0.2)
    torch.testing.assert_close(found.policy, known.policy, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.value, known.value, rtol=1e-12, atol=1e-12)
    if alpha == 2:
        assert bool(((known.policy == 0) & (reward > -math.inf) & (refs > -math.inf).any(0)).any())
    if alpha in (0.5, 0.0):
        outside = ((refs == -math.inf) | (weights == 0)[..., None]).all(0) & (reward > -math.inf)
        assert float(torch.where(outside, known.policy, 0.0).amax()) > 0.01
    rows = torch.arange(0, len(reward), 3)  # values at other policies: the divergence itself
    log_policy, reward = reward.clamp_min(-50).log_softmax(-1)[rows], reward.clamp_min(-9)[rows]
    values = [
        mr.exact.value(log_policy, reward, refs[:, rows], each.with_weights(weights[:, rows]), beta=1.0)
        for each in (AS_F[alpha], mr.AlphaDivergence(alpha=alpha))
    ]
    torch.testing.assert_close(*values, rtol=1e-11, atol=0)


WORLD = {
    "plain": [[0.5, 0.3, 0.2], [0.1, 0.3, 0.6]],
    "zero in one": [[0.5, 0.5, 0.0], [0.1, 0.3, 0.6]],
    "zero in all": [[0.5, 0.5, 0.0], [0.2, 0.8, 0.0]],
}


def generically(name, reward, references, weights, beta):
    """π* and J* from the definition of the divergence, by an interior-point method."""
    policy, penalty = cp.Variable(len(reward), nonneg=True), 0
    for weight, q in zip(weights, references):
        middle = (policy + q) / 2
        both = cp.sum(cp.kl_div(policy, middle)) + cp.sum(cp.kl_div(q, middle))
        penalty += weight * (0.5 * both if name == "js" else cp.sum(cp.kl_div(policy, q)) + cp.sum(cp.kl_div(q, policy)))
    problem = cp.Problem(cp.Maximize(reward @ policy - beta * penalty), [cp.sum(policy) == 1])
    problem.solve(solver=cp.CLARABEL)
    return np.asarray(policy.value), float(problem.value)


@pytest.mark.parametrize("name, kind", [("js", k) for k in WORLD] + [("jeffreys", "plain")], ids=lambda x: x)
def test_jensen_shannon_and_jeffreys_against_a_convex_solver(name, kind):
    reward, references, weights = np.array([0.1, 0.4, 1.3]), np.array(WORLD[kind]), (0.35, 0.65)
    for beta in (0.2, 1.0):
        policy, value = generically(name, reward, references, weights, beta)
        made = JS(weights) if name == "js" else JEFFREYS(weights)
        found = mr.exact.solve(torch.tensor(reward), torch.tensor(references).log(), made, beta=beta)
        np.testing.assert_allclose(found.policy.numpy(), policy, atol=2e-5)
        assert float(found.value) == pytest.approx(value, abs=1e-6)
        if (kind, beta) == ("zero in all", 0.2):  # the corner: λ stops at r − β f'(∞), and mass sits outside
            assert policy[2] > 0.05 and float(found.multiplier) == pytest.approx(1.3 - 0.2 * 0.5 * math.log(2), abs=1e-12)


def test_a_zero_is_a_veto_for_jeffreys_and_nothing_is_left_is_said():
    refs = torch.tensor(WORLD["zero in one"]).double().log()
    found = mr.exact.solve(torch.tensor([0.1, 0.4, 9.0]).double(), refs, JEFFREYS(), beta=0.2)
    assert float(found.policy[2]) == 0.0 and float(found.policy.sum()) == pytest.approx(1, abs=1e-14)
    apart = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double().log()
    with pytest.raises(EmptyPoolError, match="pool of Jeffreys is empty"):
        mr.exact.solve(torch.zeros(2).double(), apart, JEFFREYS(), beta=1.0)
    both = mr.exact.solve(torch.zeros(2).double(), apart, JS(), beta=1.0)
    torch.testing.assert_close(both.policy, torch.full((2,), 0.5).double())


def test_penalties_are_the_closed_forms():
    """JS = H(m) − ½H(p) − ½H(q); Jeffreys = Σ (p − q) log(p/q); with zeros on either side, and far apart."""
    p = torch.tensor([[0.2, 0.8, 0.0], [1e-30, 0.5, 0.5], [0.3, 0.3, 0.4]]).double()
    q = torch.tensor([[0.5, 0.5, 0.0], [0.6, 0.0, 0.4], [1e-25, 0.9, 0.1]]).double()
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    m = (p + q) / 2
    js = 0.5 * (p.xlogy(p) - p.xlogy(m) + q.xlogy(q) - q.xlogy(m)).sum(-1)
    torch.testing.assert_close(JS().penalty(p.log(), q.log()[None]), js, rtol=1e-13, atol=1e-15)
    two = p[[0, 2]], q[[0, 2]]
    jeffreys = torch.where(two[0] == two[1], 0.0, (two[0] - two[1]) * (two[0].log() - two[1].log())).sum(-1)
    torch.testing.assert_close(JEFFREYS().penalty(two[0].log(), two[1].log()[None]), jeffreys, rtol=1e-13, atol=0)
    assert float(JEFFREYS().penalty(p[1].log(), q[1].log()[None])) == math.inf


@pytest.mark.parametrize("made", [JS((0.3, 0.7)), AS_F[2.0].with_weights((0.3, 0.7))], ids=["js", "chi2"])
def test_the_implicit_reward_is_the_reward_and_derivatives_are_differences(made):
    generator = torch.Generator().manual_seed(0)
    refs = torch.randn(2, 5, generator=generator).double().log_softmax(-1)
    reward = torch.rand(5, generator=generator).double()

    def outputs(reward, logits):
        found = mr.exact.solve(reward, logits.log_softmax(-1), made, beta=0.7)
        return torch.stack((found.value, found.log_policy[1]))

    at = mr.exact.solve(reward, refs, made, beta=0.7).log_policy
    assert float((made.implicit_reward(at, refs, beta=0.7) - reward).std()) < 1e-13
    given = reward.requires_grad_(), refs.requires_grad_()
    gradients = [torch.autograd.grad(each, given, retain_graph=True) for each in outputs(*given)]
    for place in (0, 1):
        step = torch.zeros_like(given[place]).flatten()
        step[3] = 1e-5
        moved = [[g + sign * step.view_as(g) if i == place else g for i, g in enumerate(given)] for sign in (1, -1)]
        difference = (outputs(*moved[0]) - outputs(*moved[1])).detach() / 2e-5
        found = [float(gradient[place].reshape(-1)[3]) for gradient in gradients]
        assert found == pytest.approx(difference.tolist(), abs=1e-8)


def test_the_implicit_reward_at_the_ends_of_f():
    """f' at t = ∞, 0 and, where neither has mass, 1; Jensen–Shannon: ½ log 2, −∞ and 0; Jeffreys: ∞, −∞ and 0. Under two
    references each counts by its weight, and one of weight zero not at all; gradients are finite wherever the value is."""
    policy = torch.tensor([-1.0, -math.inf, -math.inf]).double().requires_grad_()
    refs = torch.tensor([[-math.inf, -1.0, -math.inf], [-1.0, -1.0, -math.inf]]).double()
    for made, most in ((JS, 0.5 * math.log(2)), (mr.FDivergence.jeffreys, math.inf)):
        for weights, share in (((1.0, 0.0), 1.0), ((0.25, 0.75), 0.25)):
            found = made(weights).implicit_reward(policy, refs, beta=2.0)
            assert found.tolist() == pytest.approx([2 * share * most, -math.inf, 0.0])
        (slope,) = torch.autograd.grad(made((0.0, 1.0)).implicit_reward(policy, refs, beta=2.0)[0], policy)
        assert slope.isfinite().all()


def test_preference_takes_it_and_says_where_it_goes_on_straight():
    """JS: t f'' = ½/(1 + t), from ½ at 0 down to factor 1 + R/β = 11 of ¼ at t = 21; it never rises above 2 · ¼."""
    objective = Preference(JS((1.0, 0.0)), 1.0)
    refs = torch.zeros(2, 1, 2).double() - 5
    refs[1] = -math.inf  # absent
    ratios = torch.linspace(-9, 9, 37).double()
    rewards = [float(objective.rewards(PairLogps(refs[0] + x, refs, refs[0], refs))[0, 0]) for x in ratios]
    exact = JS().implicit_reward(ratios, torch.zeros(1, 37).double(), beta=1.0)
    inside = ratios < math.log(21) - 0.02
    assert rewards[: int(inside.sum())] == pytest.approx(exact[inside].tolist(), abs=1e-14)
    assert rewards[-1] - rewards[-2] == pytest.approx(0.25 * 0.5)
    clipped = objective.clipped(PairLogps(refs[0] + torch.tensor([[3.0, 3.1]]).double(), refs, refs[0], refs))
    assert clipped is not None and clipped.tolist() == [[False, True]]


def test_what_an_absent_reference_forbids_reaches_no_gradient():
    """Weight 0 and f'(∞) = ∞: 0 · ∞ made the gradient of both weights NaN."""
    refs = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]).double().log()
    policy = torch.tensor([0.4, 0.4, 0.2]).double().log()
    for ask in (lambda rule: rule.penalty(policy, refs), lambda rule: rule.implicit_reward(policy, refs, beta=1.0).sum()):
        weights = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
        found = ask(mr.FDivergence.jeffreys(weights))
        assert found.item() == pytest.approx(ask(mr.FDivergence.jeffreys(torch.tensor([0.0, 1.0]))).item(), abs=1e-15)
        assert bool(torch.autograd.grad(found, weights)[0].isfinite().all())


def test_whatever_asks_for_a_pool_is_refused_by_name():
    refs = torch.zeros(1, 2).double().log_softmax(-1)
    for ask in (lambda: JS().pool(refs), lambda: JS().alpha, lambda: JS().order, lambda: Preference(JS(), 1.0).log_ratio_limit):
        with pytest.raises(ArgumentError, match=r"JensenShannon.*pool"):
            ask()


@pytest.mark.parametrize(
    "given, says",
    [
        ((lambda t: -t, 0, -math.inf), "rises"),
        ((lambda t: t - 1, -1, 5), "at_infinity"),
        ((lambda t: t - 1, -math.inf, math.inf), "at_zero"),
        ((lambda t: 1 - 1 / t, -math.inf, math.inf), "at_infinity"),
        ((lambda t: 1 - 1 / t, -math.inf, 2), "at_infinity"),
        ((lambda t: t / 0.0, 0, math.inf), "f_prime"),
        ((lambda t: t.sum(), 0, math.inf), "f_prime"),
        ((None, 0, math.inf), "f_prime"),
        ((lambda t: t - 1, math.nan, math.inf), "at_zero"),
    ],
    ids=["falls", "finite limit", "no truncation", "no corner", "wrong price", "not finite", "a sum", "none", "nan"],
)
def test_what_is_no_derivative_is_refused(given, says):
    with pytest.raises(ArgumentError, match=says):
        mr.FDivergence(*given)


def test_an_f_prime_out_of_digits_is_said():
    """2(1 − t^{−½}) is 2 to the last digit at t = e^80: the α-family has the digits, an f' does not."""
    refs = torch.tensor([[1.0, 1e-40]]).double().log()
    with pytest.warns(MultirefWarning, match="rounded"):
        mr.exact.solve(torch.tensor([0.0, 9.0]).double(), refs, AS_F[0.5], beta=0.1)


def test_it_is_a_value():
    assert JS([0.5, 0.5]) == JS((0.5, 0.5)) != JEFFREYS((0.5, 0.5)) and hash(JS()) == hash(JS())
    assert pickle.loads(pickle.dumps(JS((0.25, 0.75)))) == JS((0.25, 0.75))
    assert "DERIVED" in str(JS()) and "no common pool" in str(JS())
