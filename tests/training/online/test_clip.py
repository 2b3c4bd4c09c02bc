"""Two clip rules: each stands still at its own fixed point, and only the safe one leaves the optimum where it is."""

import math

import pytest
import torch

import multiref as mr
from multiref.errors import ArgumentError
from multiref.training.online import (
    AdaptiveBeta,
    ClipObjective,
    ClipReward,
    clipped_objective,
    sequence_logps,
)
from multiref_lab.toys import expected_surrogate
from tests.training.online.language import design_world
from tests.training.online.tables import make_trainer, random_table, reward_function, reward_table

WORLD = design_world()
RULE = mr.ReverseKL()
REFS = sequence_logps(WORLD.refs)
POOL = RULE.pool(REFS)
BEST = mr.exact.solve(WORLD.reward, REFS, RULE, beta=WORLD.beta).log_policy
RATIO = BEST - POOL
WIDE, MOST = float(RATIO.abs().max()), float(RATIO.max())


def largest_update(penalty, levels):
    logits = [level.clamp_min(-80).clone().requires_grad_() for level in levels]
    tokens = [level.log_softmax(-1) for level in logits]
    total = expected_surrogate(penalty, tokens, WORLD.refs, WORLD.reward, RULE, beta=WORLD.beta)
    return max(float(g.abs().max()) for g in torch.autograd.grad(total, logits))


@pytest.mark.parametrize(
    "kind, tau",
    [(ClipReward, 0.5 * MOST), (ClipReward, WIDE + 0.01), (ClipObjective, WIDE + 1.01)],
    ids=["binds", "safe", "safe objective"],
)
def test_each_rule_stands_still_at_its_fixed_point(kind, tau):
    penalty = kind(tau, biased=True)
    end = penalty.fixed_point(WORLD.reward, WORLD.refs, RULE, beta=WORLD.beta)
    assert largest_update(penalty, end) < 1e-9
    assert largest_update(penalty, [level[0] for level in WORLD.refs]) > 1e-3
    away = float(mr.divergences.kl(sequence_logps(end), BEST))
    assert away < 1e-9 if tau > WIDE else away > 1e-3


def test_the_maximiser_is_no_worse_than_the_best_completion_nor_random_policies():
    """For τ < max ℓ* all mass on the best completion beats π*, and the maximiser beats both."""
    for tau in (0.3, 1.0, 0.9 * MOST):
        end = sequence_logps(ClipObjective(tau, biased=True).fixed_point(WORLD.reward, WORLD.refs, RULE, beta=WORLD.beta))
        top = torch.full_like(BEST, -math.inf)
        top[int(RATIO.argmax())] = 0.0
        value = [float(clipped_objective(p, WORLD.reward, POOL, beta=WORLD.beta, tau=tau)) for p in (end, top, BEST)]
        assert value[0] >= value[1] > value[2]
        noise = torch.randn(200, len(BEST), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        near = (end.clamp_min(-40) + 0.1 * noise).log_softmax(-1)
        assert bool((clipped_objective(near, WORLD.reward, POOL, beta=WORLD.beta, tau=tau) <= value[0] + 1e-12).all())


@pytest.mark.parametrize("kind", [ClipReward, ClipObjective])
def test_a_reward_of_minus_infinity_is_a_veto(kind):
    """With a τ that is safe the fixed point is the optimum without that completion."""
    reward = WORLD.reward.clone()
    reward[3] = -math.inf
    best = mr.exact.solve(reward, REFS, RULE, beta=WORLD.beta).log_policy
    tau = 1.01 + float((best - POOL)[best > -math.inf].abs().max())
    end = sequence_logps(kind(tau, biased=True).fixed_point(reward, WORLD.refs, RULE, beta=WORLD.beta))
    assert end[3] == -math.inf and float(mr.divergences.kl(end, best)) < 1e-9


def test_the_gradient_of_the_objective_needs_the_derivative_of_the_clip():
    """By autograd through E_π[r − β c(ℓ)] itself: c + c′ is its gradient, c alone is not."""
    tau = 0.5 * MOST
    logits = [level[0].clone().requires_grad_() for level in WORLD.refs]
    tokens = [level.log_softmax(-1) for level in logits]
    value = clipped_objective(sequence_logps(tokens), WORLD.reward, POOL, beta=WORLD.beta, tau=tau)
    exact = torch.autograd.grad(value, logits, retain_graph=True)
    found = {}
    for kind in (ClipObjective, ClipReward):
        total = expected_surrogate(kind(tau, biased=True), tokens, WORLD.refs, WORLD.reward, RULE, beta=WORLD.beta)
        update = torch.autograd.grad(total, logits, retain_graph=True)
        found[kind] = float(sum(((a - b) ** 2).sum() for a, b in zip(exact, update))) ** 0.5
    size = float(sum((a**2).sum() for a in exact)) ** 0.5
    assert found[ClipObjective] < 1e-12 and found[ClipReward] > 0.05 * size


def test_a_clip_that_may_move_the_optimum_is_refused_unless_asked_for():
    """Safe: τ ≥ 1 + R/β − log F for the objective, without the 1 for the reward; −log F of the worst prompt."""
    for kind, margin in ((ClipObjective, 1.0), (ClipReward, 0.0)):
        least = margin + 1.0 / 0.5 + 0.7
        kind(least + 1e-9, reward_range=1.0, disagreement=[0.2, 0.7]).check_strength(0.5)
        with pytest.raises(ArgumentError, match=rf"safe from {least:.4g}"):
            kind(least - 1e-6, reward_range=1.0, disagreement=[0.2, 0.7]).check_strength(0.5)
        with pytest.raises(ArgumentError, match="disagreement"):
            kind(100.0, reward_range=1.0).check_strength(0.5)
        kind(0.1, biased=True).check_strength(0.5)
    with pytest.raises(ArgumentError, match="ForwardKL"):
        ClipReward(1.0).check(mr.ForwardKL())


@pytest.mark.parametrize("tau", [0.0, -1.0, math.inf, math.nan], ids=repr)
def test_tau_is_positive_and_finite(tau):
    with pytest.raises(ArgumentError, match="tau"):
        ClipReward(tau, biased=True)


def test_the_loop_logs_what_was_clipped_and_refuses_before_the_first_step():
    policy, tables = random_table(0), [random_table(s) for s in (1, 2)]
    reward = reward_function(policy, reward_table(policy))
    with pytest.raises(ArgumentError, match="biased"):
        make_trainer(policy, tables, RULE, rewards=[reward], penalty=ClipReward(1e-6))
    shares = []
    for tau in (1e-6, 50.0):
        trainer = make_trainer(policy, tables, RULE, rewards=[reward], penalty=ClipObjective(tau, biased=True), steps=1)
        shares.append(trainer.train()[-1]["clipped"])
    assert shares == [1.0, 0.0]


def test_a_safe_clip_and_a_strength_that_moves_are_refused_together():
    """τ is safe from margin + R/β − log F on: no longer where β falls."""
    tables = [random_table(1), random_table(2)]
    safe = ClipReward(50.0, reward_range=1.0, disagreement=0.5)
    with pytest.raises(ArgumentError, match="adaptive_beta"):
        make_trainer(random_table(1), tables, RULE, penalty=safe, adaptive_beta=AdaptiveBeta(target=1.0))
    make_trainer(random_table(1), tables, RULE, penalty=ClipReward(50.0, biased=True), adaptive_beta=AdaptiveBeta(target=1.0))
