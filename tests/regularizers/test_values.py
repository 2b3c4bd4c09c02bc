"""A regularizer is a small frozen value: comparable, hashable, printable, and the same object to every room."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch

import multiref as mr

MEMBERS = [mr.ReverseKL, mr.ForwardKL, mr.AlphaDivergence, mr.PooledKL]
every_member = pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.__name__)


@every_member
def test_equal_where_the_numbers_are(member):
    assert member([0.25, 0.75]) == member((0.25, 0.75)) and hash(member([0.25, 0.75])) == hash(member((0.25, 0.75)))
    assert member(torch.tensor([0.25, 0.75])) == member([0.25, 0.75])
    assert member([0.25, 0.75]) != member([0.75, 0.25]) and member() != member([1.0])
    assert len({member(), member(), member([1.0])}) == 2


def test_members_differ_from_one_another():
    assert mr.ReverseKL() != mr.ForwardKL()
    assert mr.AlphaDivergence(alpha=0.5) != mr.AlphaDivergence(alpha=2)
    assert mr.PooledKL(order=-1) != mr.PooledKL(order=0)
    assert mr.AlphaDivergence(alpha=1) != mr.ReverseKL() != mr.PooledKL(order=0)  # the same numbers under another name


def test_what_is_not_said():
    """Uniform weights, α = ½, MRPO's pool."""
    assert all(member().weights is None for member in MEMBERS)
    assert mr.AlphaDivergence().alpha == 0.5 and mr.PooledKL().order == -1


@every_member
def test_frozen(member):
    with pytest.raises(dataclasses.FrozenInstanceError):
        member().weights = (1.0,)


@every_member
def test_printable_and_says_what_it_is(member):
    regularizer = member([0.25, 0.75])
    assert repr(regularizer).startswith(member.__name__ + "(weights=(0.25, 0.75)")
    assert regularizer.name == member.__name__
    assert regularizer.formula in str(regularizer) and regularizer.citation in str(regularizer)
    assert any(tag in regularizer.citation for tag in ("FOUND", "DERIVED", "reconstructed"))
    assert eval(repr(regularizer), {member.__name__: member}) == regularizer


@every_member
def test_copies_by_value(member):
    assert pickle.loads(pickle.dumps(member([0.25, 0.75]))) == member([0.25, 0.75])


@every_member
def test_other_weights_same_kind(member):
    changed = member([0.25, 0.75]).with_weights((0.5, 0.5))
    assert changed == member([0.5, 0.5]) and changed.alpha == member().alpha and changed.order == member().order
    with pytest.raises(mr.errors.WeightsError):
        member().with_weights((0.5, 0.6))


@every_member
def test_weights_that_carry_a_gradient_keep_it(member):
    """A tensor that is being learned is not turned into numbers."""
    weights = torch.tensor([0.25, 0.75], dtype=torch.float64, requires_grad=True)
    logps = torch.tensor([[0.5, 0.5], [0.2, 0.8]], dtype=torch.float64).log()
    (gradient,) = torch.autograd.grad(member(weights).pool(logps).sum(), weights)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize(
    "regularizer, alpha, order",
    [
        (mr.ReverseKL(), 1, 0),
        (mr.ForwardKL(), 0, 1),
        (mr.AlphaDivergence(alpha=0.5), 0.5, 0.5),
        (mr.AlphaDivergence(alpha=2), 2, -1),
        (mr.AlphaDivergence(alpha=-1.5), -1.5, 2.5),
        (mr.PooledKL(), 1, -1),
        (mr.PooledKL(order=1), 1, 1),
    ],
)
def test_which_divergence_and_which_pool(regularizer, alpha, order):
    """ρ = 1 − α for the family; PooledKL is reverse KL to a pool of its own order."""
    assert regularizer.alpha == alpha and regularizer.order == order
    logps = torch.tensor([[0.5, 0.5], [0.2, 0.8]], dtype=torch.float64).log()
    torch.testing.assert_close(regularizer.pool(logps), mr.pools.power_pool(logps, None, order), rtol=0, atol=0)
