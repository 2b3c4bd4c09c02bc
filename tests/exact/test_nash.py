"""Equilibria of preference games: against a fixed point found by plain numpy, by laws, and at every corner."""

import math

import numpy as np
import pytest
import torch

import multiref as mr
from multiref.errors import ArgumentError, EmptyPoolError
from multiref.exact._interior import find_interior

ROCK_PAPER_SCISSORS = torch.tensor([[0.5, 0.0, 1.0], [1.0, 0.5, 0.0], [0.0, 1.0, 0.5]]).double()
RULES = [mr.ReverseKL, mr.ForwardKL, mr.AlphaDivergence, mr.FDivergence.jensen_shannon]
IDS = ["reverse", "forward", "alpha ½", "Jensen–Shannon"]
LONG = [[], [], [], [pytest.mark.slow]]  # nested roots within Newton's steps
every_rule = pytest.mark.parametrize("rule", [pytest.param(r, id=i, marks=m) for r, i, m in zip(RULES, IDS, LONG)])


def games(seeds=3, completions=5, references=2, seed=0):
    rng = np.random.default_rng(seed)
    odds = rng.normal(size=(seeds, completions, completions)) * 2
    logits = rng.normal(size=(references, seeds, completions))
    return torch.from_numpy(1 / (1 + np.exp(odds.swapaxes(1, 2) - odds))), torch.from_numpy(logits).log_softmax(-1)


def test_reverse_kl_against_damped_iteration_in_numpy():
    """π ∝ Π π_k^{w_k} e^{Pπ/β}: from its own definition, 20,000 small steps on logits."""
    preference, refs = games(seeds=1)
    p, weights, beta = preference[0].numpy(), np.array([0.3, 0.7]), 0.1
    base = (weights[:, None] * refs[:, 0].numpy()).sum(0)
    u = base.copy()
    for _ in range(20_000):
        policy = np.exp(u - u.max()) / np.exp(u - u.max()).sum()
        u += 0.02 * (base + p @ policy / beta - u)
    found = mr.exact.nash(preference, refs, mr.ReverseKL(weights.tolist()), beta=beta)
    np.testing.assert_allclose(found.policy[0].numpy(), policy, atol=1e-11)
    penalty = float(mr.ReverseKL(weights.tolist()).penalty(found.log_policy[0], refs[:, 0]))
    assert float(found.value) == pytest.approx(0.5 - beta * penalty, abs=1e-13)


@every_rule
def test_an_equilibrium_is_its_own_best_response(rule):
    preference, refs = games(seeds=2)
    rule = rule([0.3, 0.7])
    found = mr.exact.nash(preference, refs, rule, beta=0.2)
    response = mr.exact.solve((preference @ found.policy[..., None])[..., 0], refs, rule, beta=0.2)
    torch.testing.assert_close(response.policy, found.policy, rtol=0, atol=1e-11)
    assert float(mr.exact.duality_gap(found.log_policy, preference, refs, rule, beta=0.2).max()) < 1e-12
    moved = (0.9 * found.policy + 0.1 / 5).log()
    assert float(mr.exact.duality_gap(moved, preference, refs, rule, beta=0.2).min()) > 1e-5


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_the_gap_is_what_the_best_of_all_responses_gains(alpha):
    """J(q, π) − J(π, π) of the best response, and of none of 200 others more; away from the equilibrium."""
    preference, refs = games(seeds=2)
    rule, policy = mr.AlphaDivergence([0.3, 0.7], alpha=alpha), refs[0]
    reward = (preference @ policy.exp()[..., None])[..., 0]

    def gained(response):
        return mr.exact.value(response, reward, refs, rule, beta=0.2) - mr.exact.value(policy, reward, refs, rule, beta=0.2)

    gap, best = mr.exact.duality_gap(policy, preference, refs, rule, beta=0.2), mr.exact.solve(reward, refs, rule, beta=0.2)
    torch.testing.assert_close(gap, gained(best.log_policy), rtol=1e-9, atol=1e-12)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(200, *policy.shape, generator=generator, dtype=torch.float64)
    assert all(bool((gained((best.log_policy + each).log_softmax(-1)) < gap).all()) for each in noise)


def test_truncation_and_the_corner():
    """α = 2 drops completions at the equilibrium; forward KL plays a completion that no reference has and that always wins."""
    preference, refs = games(seeds=4, completions=8, seed=1)
    rule = mr.AlphaDivergence(alpha=2.0)
    found = mr.exact.nash(preference, refs, rule, beta=0.05)
    assert bool((found.policy == 0).any()) and float(found.policy.sum(-1).min()) == pytest.approx(1)
    assert float(mr.exact.duality_gap(found.log_policy, preference, refs, rule, beta=0.05).max()) < 1e-12
    preference[:, 3], preference[:, :, 3] = 0.9, 0.1
    preference[:, 3, 3] = 0.5
    refs[:, :, 3] = -math.inf
    refs = refs.log_softmax(-1)
    for rule in (mr.ForwardKL(), mr.ReverseKL()):
        found = mr.exact.nash(preference, refs, rule, beta=0.1)
        assert (found.policy[:, 3] > 0.1).all() == isinstance(rule, mr.ForwardKL)
        assert float(mr.exact.duality_gap(found.log_policy, preference, refs, rule, beta=0.1).max()) < 1e-12


def test_a_cycle_is_mixed_and_a_winner_wins():
    """Uniform references: rock, paper, scissors stay uniform at every β; where one beats all, β → 0 plays it."""
    uniform = torch.zeros(1, 3).double().log_softmax(-1)
    for beta in (1.0, 0.01, 0.001):
        found = mr.exact.nash(ROCK_PAPER_SCISSORS, uniform, mr.ReverseKL(), beta=beta).policy
        torch.testing.assert_close(found, torch.full((3,), 1 / 3, dtype=torch.float64), rtol=0, atol=1e-13)
    winner = torch.tensor([[0.5, 0.9, 0.9], [0.1, 0.5, 0.0], [0.1, 1.0, 0.5]]).double()
    assert float(mr.exact.nash(winner, uniform, mr.ReverseKL(), beta=0.01).policy[0]) > 1 - 1e-12


def test_batches_weights_and_the_gap_of_what_has_no_mass():
    preference, refs = games()
    found = mr.exact.nash(preference, refs, mr.ReverseKL(), beta=0.1)
    alone = mr.exact.nash(preference[1], refs[:, 1], mr.ReverseKL(), beta=0.1)
    torch.testing.assert_close(found.policy[1], alone.policy, rtol=0, atol=1e-13)
    greedy = torch.full((5,), -math.inf).double()
    greedy[2] = 0.0
    gap = mr.exact.duality_gap(greedy, preference[1], refs[:, 1], mr.ReverseKL(), beta=0.1)
    reward = preference[1][:, 2]
    best = mr.exact.solve(reward, refs[:, 1], mr.ReverseKL(), beta=0.1)
    assert float(gap) == pytest.approx(
        float(best.value - mr.exact.value(greedy, reward, refs[:, 1], mr.ReverseKL(), beta=0.1)), abs=1e-13
    )


def spoilt(i, j, value):
    bad = ROCK_PAPER_SCISSORS.clone()
    bad[i, j] = value
    return bad


@pytest.mark.parametrize(
    "preference, says",
    [
        (spoilt(0, 1, 0.3), r"P \+ Pᵀ = 1.*completions 0 and 1"),
        (spoilt(1, 1, 0.4), "½ on the diagonal"),
        (spoilt(0, 1, math.nan), "NaN"),
        (spoilt(0, 1, -0.5), r"in \[0, 1\]"),
        (ROCK_PAPER_SCISSORS[:2], "all pairs"),
        (ROCK_PAPER_SCISSORS.long(), "floating-point"),
        (torch.full((2, 2), 0.5).double(), "does not match"),
    ],
    ids=["not skew", "diagonal", "nan", "outside", "not square", "integers", "shape"],
)
def test_what_is_no_preference_is_refused(preference, says):
    refs = torch.zeros(1, 3).double().log_softmax(-1)
    with pytest.raises(ArgumentError, match=says):
        mr.exact.nash(preference, refs, mr.ReverseKL())
    with pytest.raises(ArgumentError, match=says):
        mr.exact.duality_gap(refs[0], preference, refs, mr.ReverseKL())


def test_an_empty_pool_and_beta_are_refused():
    apart = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).double().log()
    with pytest.raises(EmptyPoolError):
        mr.exact.nash(ROCK_PAPER_SCISSORS, apart, mr.ReverseKL())
    with pytest.raises(ArgumentError, match="beta"):
        mr.exact.nash(ROCK_PAPER_SCISSORS, apart, mr.ReverseKL(), beta=0.0)


@pytest.mark.parametrize("alpha", [2.0, 1.2, 4.0, 1.0, 0.0], ids=lambda alpha: f"alpha {alpha:g}")
def test_small_strengths_settle(alpha):
    """Truncated best responses have kinks, at which Newton's method alone stalled: 8 of 50 games at α = 2, β = 0.001."""
    preference, refs = games(seeds=50, completions=10, references=3, seed=4)
    rule = mr.AlphaDivergence(alpha=alpha) if alpha != 1 else mr.ReverseKL()
    for beta in (0.001, 1e-5):
        found = mr.exact.nash(preference, refs, rule, beta=beta)
        assert float(mr.exact.duality_gap(found.log_policy, preference, refs, rule, beta=beta).max()) < 1e-12


def test_the_interior_method_arrives_by_itself():
    """Without Newton's method behind it, where best responses truncate: 0.06 off if its steps do not keep to the central path
    (the next μ at 0 of the last)."""
    preference, refs = games(seeds=20, completions=10, references=3, seed=4)
    rule = mr.AlphaDivergence(alpha=2.0)
    skew = 0.5 * (preference - preference.mT)
    policy = mr.exact.nash(preference, refs, rule, beta=0.001).log_policy.exp()
    reached = find_interior(skew, refs, rule, 0.001)
    assert float((reached - (skew @ policy[..., None])[..., 0]).abs().max()) < 1e-9


def test_a_truncated_equilibrium_against_lemkes_method():
    """α = 2 is the linear complementarity problem (β/P) π − Sπ + λ = s, Σπ = 1, π, s ≥ 0, π s = 0: solved by trying every
    support (2⁵) in numpy."""
    preference, refs = games(seeds=4, seed=6)
    rule, beta = mr.AlphaDivergence([0.3, 0.7], alpha=2.0), 0.002
    found = mr.exact.nash(preference, refs, rule, beta=beta)
    pool = 1 / (np.array([0.3, 0.7])[:, None, None] / refs.exp().numpy()).sum(0)  # harmonic
    for row in range(4):
        skew = preference[row].numpy() - 0.5
        solutions = []
        for bits in range(1, 32):
            on = np.array([bits >> k & 1 for k in range(5)], bool)
            n = int(on.sum())
            system = np.zeros((n + 1, n + 1))
            system[:n, :n] = np.diag(beta / pool[row][on]) - skew[np.ix_(on, on)]
            system[:n, n] = system[n, :n] = 1
            answer = np.linalg.solve(system, np.r_[np.zeros(n), 1.0])
            policy = np.zeros(5)
            policy[on] = answer[:n]
            slack = answer[n] - skew @ policy
            if (policy >= 0).all() and (slack[~on] >= -1e-13).all():
                solutions.append(policy)
        assert len(solutions) == 1
        np.testing.assert_allclose(found.policy[row].numpy(), solutions[0], atol=1e-12)
    assert bool((found.policy == 0).any())
