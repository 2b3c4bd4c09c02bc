"""Sampled gradients are unbiased: their mean over 10⁵ completions is within 4 standard errors of the enumerated gradient,
entry by entry."""

from dataclasses import replace

import pytest
import torch

import multiref as mr
from multiref.training.online.backward_induction import levels_of, path_tokens
from multiref.training.online.methods import GRPO, RLOO, Reinforce
from multiref.training.online.penalties import (
    FullVocabulary,
    K2Loss,
    K3Loss,
    K3RenormalisedLoss,
    PenaltyInReward,
    RatioK3,
    RewardToGo,
)
from multiref.training.online.rule import compute_surrogate
from multiref_lab.toys import enumerated_samples, expected_surrogate
from tests.training.online.language import small_world

WORLD = small_world()
WEIGHTS = (0.2, 0.3, 0.5)
COMPLETIONS = 100_000


def policy(seed, spread=0.7):
    return spread * torch.randn(13, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def enumerated_gradient(penalty, regularizer, rows):
    rows = rows.clone().requires_grad_()
    total = expected_surrogate(penalty, levels_of(rows, 3), WORLD.refs, WORLD.reward, regularizer, beta=WORLD.beta)
    return -torch.autograd.grad(total, rows)[0]


def sampled_gradients(method, penalty, regularizer, rows, behaviour, groups):
    """[groups / 500, 13, 3]: the gradient of the mean loss of each 500 groups, by autograd with a table per block."""
    everything = enumerated_samples(levels_of(rows, 3), WORLD.refs, WEIGHTS)
    probability = path_tokens(levels_of(behaviour, 3)).sum(-1).exp()
    draws = torch.multinomial(probability, groups * method.group, replacement=True, generator=torch.Generator().manual_seed(9))
    blocks = draws.reshape(-1, 500 * method.group)
    gradients = []
    for index in blocks:
        table = rows.clone().requires_grad_()
        now = path_tokens(levels_of(table, 3))[index]
        old = path_tokens(levels_of(behaviour, 3))[index]
        divergences = enumerated_samples(levels_of(table, 3), WORLD.refs, WEIGHTS).divergences[index]
        samples = replace(
            everything,
            token_logps=now,
            mask=everything.mask[index],
            ref_logps=everything.ref_logps[:, index],
            old_token_logps=old,
            ref_token_logps=everything.ref_token_logps[:, index],
            disagreements=everything.disagreements[index],
            divergences=divergences,
        )
        losses = compute_surrogate(
            samples, WORLD.reward[index], regularizer, method=method, penalty=penalty, beta=WORLD.beta, longest=1
        ).losses
        gradients.append(torch.autograd.grad(losses.mean(), table)[0])
    return torch.stack(gradients)


def assert_unbiased(gradients, truth):
    error = gradients.std(0) / len(gradients) ** 0.5
    deviation = (gradients.mean(0) - truth).abs() / error.clamp_min(1e-12)
    assert float(deviation.max()) < 4, f"{float(deviation.max()):.1f} standard errors"
    assert float((truth.abs() / error.clamp_min(1e-12)).max()) > 20, "too noisy to tell anything"


CASES = [
    (RLOO(group=4), PenaltyInReward(), mr.ReverseKL(WEIGHTS)),
    (RLOO(group=4), RewardToGo(), mr.ReverseKL(WEIGHTS)),
    (RLOO(group=4), PenaltyInReward(), mr.ForwardKL(WEIGHTS)),
    (RLOO(group=4), PenaltyInReward(), mr.AlphaDivergence(WEIGHTS, alpha=0.5)),
    (RLOO(group=2), PenaltyInReward(), mr.PooledKL(WEIGHTS, order=-1.0)),
    (Reinforce(group=1), PenaltyInReward(), mr.ReverseKL(WEIGHTS)),
    (GRPO(group=4, clip=None), PenaltyInReward(), mr.ReverseKL(WEIGHTS)),
    (GRPO(group=4, clip=None), RatioK3(), mr.ReverseKL(WEIGHTS)),
    (GRPO(group=4), RatioK3(), mr.ReverseKL(WEIGHTS)),
    (GRPO(group=4, clip=None), K3Loss(), mr.ReverseKL(WEIGHTS)),
    (GRPO(group=4, clip=None), K3RenormalisedLoss(), mr.ReverseKL(WEIGHTS)),
    (RLOO(group=4), FullVocabulary(), mr.ReverseKL(WEIGHTS)),
    (RLOO(group=4), K2Loss(), mr.ReverseKL(WEIGHTS)),
]
NAMES = [f"{type(m).__name__}{m.group}-{type(p).__name__}-{type(r).__name__}-{m.clip}" for m, p, r in CASES]


@pytest.mark.parametrize(("method", "penalty", "regularizer"), CASES, ids=NAMES)
def test_on_policy(method, penalty, regularizer):
    rows = policy(4)
    gradients = sampled_gradients(method, penalty, regularizer, rows, rows, COMPLETIONS // method.group)
    assert_unbiased(gradients, enumerated_gradient(penalty, regularizer, rows))


@pytest.mark.parametrize(
    ("method", "penalty", "regularizer"),
    [case for case in CASES if isinstance(case[0], (RLOO, Reinforce)) and case[1].exact],
    ids=[name for name, case in zip(NAMES, CASES) if isinstance(case[0], (RLOO, Reinforce)) and case[1].exact],
)
def test_off_policy(method, penalty, regularizer):
    """Sampled by an older policy, weighted by the ratio of whole completions, the penalty that of the policy as it is now."""
    rows = policy(4)
    behaviour = rows + policy(5, spread=0.3)
    gradients = sampled_gradients(method, penalty, regularizer, rows, behaviour, COMPLETIONS // method.group)
    assert_unbiased(gradients, enumerated_gradient(penalty, regularizer, rows))


def test_leaving_out_the_factor_of_the_group_changes_beta():
    """With the group's mean as baseline and the penalty in the loss, the update is (G−1)/G of the one for β G/(G−1):
    theory in `leave_one_out`."""

    class GroupMean(RLOO):
        def advantages(self, returns):
            return returns - returns.mean(1, keepdim=True)

    rows, penalty, regularizer = policy(4), RatioK3(), mr.ReverseKL(WEIGHTS)
    gradients = sampled_gradients(GroupMean(group=2), penalty, regularizer, rows, rows, COMPLETIONS // 2)
    world_beta = WORLD.beta
    table = rows.clone().requires_grad_()
    total = expected_surrogate(penalty, levels_of(table, 3), WORLD.refs, WORLD.reward, regularizer, beta=2 * world_beta)
    assert_unbiased(gradients, -torch.autograd.grad(total, table)[0] / 2)
    error = gradients.std(0) / len(gradients) ** 0.5
    assert float(((gradients.mean(0) - enumerated_gradient(penalty, regularizer, rows)).abs() / error).max()) > 20
