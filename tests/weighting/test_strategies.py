"""Weighting strategies: the formulas on paper, and the laws of a weight."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multiref.errors import ArgumentError
from multiref.weighting import arwc, uniform, vaw, vdw

MARGINS = torch.tensor([[1.0, -2.0, 4.0], [-1.0, 1.0, 1.0]], dtype=torch.float64)
matrices = st.integers(1, 4).flatmap(
    lambda k: st.lists(st.lists(st.floats(-50, 50), min_size=5, max_size=5), min_size=k, max_size=k).map(
        lambda m: torch.tensor(m).double()
    )
)


def test_on_paper():
    """|m| sums to 7 and 3; right 2 and 2 times; per example |1|:|-1|, 2:1, 4:1."""
    assert torch.allclose(vdw(MARGINS), torch.tensor([0.7, 0.3]).double())
    assert torch.allclose(vaw(MARGINS), torch.tensor([0.5, 0.5]).double())
    assert torch.allclose(arwc(MARGINS), torch.tensor([[1 / 2, 2 / 3, 4 / 5], [1 / 2, 1 / 3, 1 / 5]]).double())
    assert torch.allclose(uniform(MARGINS), torch.tensor([0.5, 0.5]).double())


@given(matrices, st.randoms())
def test_weights_are_on_the_simplex_and_follow_a_permutation(margins, dice):
    order = list(range(len(margins)))
    dice.shuffle(order)
    for strategy in (uniform, vdw, vaw, arwc):
        weights = strategy(margins)
        assert (weights >= 0).all() and torch.allclose(weights.sum(0), torch.ones_like(weights.sum(0)))
        assert torch.allclose(strategy(margins[order]), weights[order])


def test_no_evidence_is_uniform():
    zero = torch.zeros(3, 2)
    for kind in (torch.float32, torch.float16, torch.int64):
        for strategy in (uniform, vdw, vaw):
            weights = strategy(zero.to(kind))
            assert torch.allclose(weights.double(), torch.full((3,), 1 / 3).double()), kind
    assert torch.allclose(arwc(zero), torch.full((3, 2), 1 / 3))
    assert torch.allclose(uniform(zero[:, :0]), torch.full((3,), 1 / 3))


def test_bad_margins():
    with pytest.raises(ArgumentError, match=r"shape \(3,\); expected \[K, P\]"):
        vdw(torch.zeros(3))
    with pytest.raises(ArgumentError, match="1 of 4 margins are not finite"):
        arwc(torch.tensor([[0.0, float("-inf")], [0.0, 0.0]]))
