"""Every rule settles where its `fixed_point` says: the expected update, by autograd through the estimator,
is zero there and nowhere near."""

import pytest
import torch

import multiref as mr
from multiref.training import online
from multiref.training.online.backward_induction import conditionals, path_tokens, sequence_logps
from multiref.training.online.penalties import NoPenalty
from multiref_lab.toys import expected_surrogate
from tests.training.online.language import design_world, small_world, standardised_fixed_point

UNIFORM = mr.ReverseKL()
WORLD = design_world()
BEST = mr.exact.solve(WORLD.reward, sequence_logps(WORLD.refs), mr.ReverseKL(), beta=WORLD.beta).log_policy

# KL(fixed point‖π*), nats per completion. The prototype prints where 4,000 steps of Adam end:
# the same to its five decimals, but for
# the harmonic pool, where Adam had not arrived (0.16323).
RULES = [
    ("k1 in reward, pool", online.PenaltyInReward(), 0.0, mr.ReverseKL()),
    ("k1 in reward, to go", online.RewardToGo(), 0.0, mr.ReverseKL()),
    ("k2 as loss", online.K2Loss(), 0.10706, mr.ReverseKL()),
    ("ratio k3 as loss", online.RatioK3(), 0.10706, mr.ReverseKL()),
    ("k3 as loss, renormalised tokens", online.K3RenormalisedLoss(), 0.11766, mr.ReverseKL()),
    ("k3 as loss, pool", online.K3PoolLoss(), 0.55265, mr.ReverseKL()),
    ("k3 as loss, each reference", online.K3Loss(), 0.51655, mr.ReverseKL()),
    ("k1 in reward, renormalised tokens", online.RenormalisedInReward(), 0.08900, mr.ReverseKL()),
    ("k1 in reward, harmonic pool", online.PenaltyInReward(), 0.16345, mr.PooledKL(order=-1.0)),
    ("k1 in reward, reference 0 alone", online.PenaltyInReward(), 2.18633, mr.ReverseKL((1.0, 0.0))),
    ("full vocabulary", online.FullVocabulary(), 0.0, mr.ReverseKL()),
    ("full vocabulary, state by state", online.PerTokenReverseKL(), 0.10706, mr.ReverseKL()),
    ("full vocabulary, forward, state by state", online.PerTokenForwardKL(), 0.11766, mr.ReverseKL()),
    ("forward KL in reward", online.PenaltyInReward(), None, mr.ForwardKL()),
    ("α = ½ in reward", online.PenaltyInReward(), None, mr.AlphaDivergence(alpha=0.5)),
    ("Jensen–Shannon in reward", online.PenaltyInReward(), None, mr.FDivergence.jensen_shannon()),
    ("weights 0.2, 0.8", online.PenaltyInReward(), None, mr.ReverseKL((0.2, 0.8))),
]


def largest_update(penalty, levels, world, regularizer=UNIFORM, standardise=False):
    logits = [level.clone().requires_grad_() for level in levels]
    tokens = [level.log_softmax(-1) for level in logits]
    total = expected_surrogate(penalty, tokens, world.refs, world.reward, regularizer, beta=world.beta, standardise=standardise)
    return max(float(g.abs().max()) for g in torch.autograd.grad(total, logits))


@pytest.mark.parametrize(("name", "penalty", "distance", "regularizer"), RULES, ids=[rule[0] for rule in RULES])
def test_a_rule_stands_still_at_its_fixed_point_and_moves_elsewhere(name, penalty, distance, regularizer):
    end = penalty.fixed_point(WORLD.reward, WORLD.refs, regularizer, beta=WORLD.beta)
    assert largest_update(penalty, end, WORLD, regularizer) < 1e-14
    assert largest_update(penalty, [level[0] for level in WORLD.refs], WORLD, regularizer) > 1e-3
    if distance is not None:
        assert float(mr.divergences.kl(sequence_logps(end), BEST)) == pytest.approx(distance, abs=1e-5)


@pytest.mark.parametrize(
    "regularizer",
    [
        mr.ReverseKL((0.3, 0.7)),
        mr.ForwardKL((0.3, 0.7)),
        mr.AlphaDivergence((0.3, 0.7), alpha=0.5),
        mr.AlphaDivergence((0.3, 0.7), alpha=2.0),
    ],
    ids=str,
)
def test_the_exact_rule_is_the_gradient_of_the_objective_everywhere(regularizer):
    """∇ [E_π r − β Σ_k w_k D(π‖π_k)], by autograd through `exact.value`, against the expected update of the rule,
    at a policy far from both ends."""
    generator = torch.Generator().manual_seed(3)
    logits = [torch.randn(level.shape[1:], generator=generator, dtype=torch.float64).requires_grad_() for level in WORLD.refs]
    tokens = [level.log_softmax(-1) for level in logits]
    value = mr.exact.value(sequence_logps(tokens), WORLD.reward, sequence_logps(WORLD.refs), regularizer, beta=WORLD.beta)
    update = expected_surrogate(online.PenaltyInReward(), tokens, WORLD.refs, WORLD.reward, regularizer, beta=WORLD.beta)
    for a, b in zip(torch.autograd.grad(value, logits, retain_graph=True), torch.autograd.grad(update, logits)):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-9)


def test_to_go_and_whole_completions_have_one_expectation():
    logits = [level[1].clone().requires_grad_() for level in WORLD.refs]
    tokens = [level.log_softmax(-1) for level in logits]
    whole, to_go = (
        torch.autograd.grad(
            expected_surrogate(p, tokens, WORLD.refs, WORLD.reward, UNIFORM, beta=0.5), logits, retain_graph=True
        )
        for p in (online.PenaltyInReward(), online.RewardToGo())
    )
    for a, b in zip(whole, to_go):
        torch.testing.assert_close(a, b, atol=1e-14, rtol=1e-10)


def test_ratio_k3_is_exact_for_completions_of_one_token():
    """There is no later state to ignore: the frozen-state gradient is the whole one."""
    refs, reward = [WORLD.refs[0]], WORLD.reward[:4]
    end = online.RatioK3().fixed_point(reward, refs, mr.ReverseKL((0.3, 0.7)), beta=0.5)
    best = mr.exact.solve(reward, refs[0][:, 0], mr.ReverseKL((0.3, 0.7)), beta=0.5).log_policy
    torch.testing.assert_close(end[0][0], best, atol=1e-13, rtol=0)


@pytest.mark.parametrize("penalty", [online.RatioK3(), online.K3Loss()], ids=lambda p: type(p).__name__)
def test_dividing_by_the_deviation_means_another_beta(penalty):
    world = type(WORLD)(WORLD.refs, WORLD.reward, beta=2.0)
    levels, sigma = standardised_fixed_point(penalty, world.reward, world.refs, UNIFORM, beta=world.beta)
    assert largest_update(penalty, levels, world, standardise=True) < 1e-13
    logps = sequence_logps(levels)
    assert float((logps.exp() * (world.reward - (logps.exp() * world.reward).sum()) ** 2).sum().sqrt()) == pytest.approx(sigma)
    plain = penalty.fixed_point(world.reward, world.refs, UNIFORM, beta=world.beta)
    assert float(mr.divergences.kl(logps, sequence_logps(plain))) > 0.01


def test_dividing_by_the_deviation_can_leave_no_fixed_point_but_the_greedy_policy():
    """β = ½ on the design's instance: σ ↦ sd_r(π_{βσ}) has no positive solution, and the expected update climbs to the best
    completion."""
    assert standardised_fixed_point(online.RatioK3(), WORLD.reward, WORLD.refs, UNIFORM, beta=0.5) is None
    logits = [level[0].clone().requires_grad_() for level in WORLD.refs]
    optimizer = torch.optim.Adam(logits, lr=0.3)
    for _ in range(200):
        optimizer.zero_grad()
        tokens = [level.log_softmax(-1) for level in logits]
        (
            -expected_surrogate(online.RatioK3(), tokens, WORLD.refs, WORLD.reward, UNIFORM, beta=0.5, standardise=True)
        ).backward()
        optimizer.step()
    logps = sequence_logps([level.detach().log_softmax(-1) for level in logits])
    assert float(logps.max().exp()) > 0.99


def test_without_a_penalty_all_mass_is_on_the_best_completions():
    """Two prompts of four completions 00, 01, 10, 11: of the first 01 and 10 are best, of the second 00 alone; behind a prefix
    that it never takes a policy is uniform."""
    reward = torch.tensor([[1.0, 2.0, 2.0, 0.0], [3.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    refs = [torch.zeros(1, 2, 1, 2), torch.zeros(1, 2, 2, 2)]
    first, second = NoPenalty().fixed_point(reward, refs, UNIFORM, beta=0.5)
    assert first.exp().tolist() == [[[0.5, 0.5]], [[1.0, 0.0]]]
    assert second.exp().tolist() == [[[0.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [0.5, 0.5]]]


def test_the_tree_walks_both_ways():
    world = small_world()
    levels = [level[0] for level in world.refs]
    whole = sequence_logps(levels)
    for a, b in zip(levels, conditionals(whole, 3)):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(path_tokens(levels).sum(-1), whole)
