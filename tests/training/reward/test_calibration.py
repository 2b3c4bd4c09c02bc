"""Calibration against a truth that is known: labels drawn with probability σ(margin), and with another."""

import math

import pytest
import torch

from multiref.errors import ArgumentError
from multiref.training.reward import calibration


def test_by_hand():
    """Margins log 3, log 3, −log 3 (confidence ¾, two of three right: |⅔ − ¾|) and log 9 (0.9, right:
    0.1), one fourth each of the pairs in the sum.

    ECE = ¾ · 1/12 + ¼ · 0.1 = 0.0625 + 0.025.
    """
    found = calibration(torch.tensor([3.0, 3.0, 1 / 3, 9.0]).log(), bins=5)
    assert found.error == pytest.approx(0.0875, abs=1e-6)
    assert [(b.confidence, b.accuracy, b.count) for b in found.bins] == [
        (pytest.approx(0.75), pytest.approx(2 / 3), 3),
        (pytest.approx(0.9), pytest.approx(1.0), 1),
    ]


def test_a_count_is_that_many_pairs():
    margins = torch.tensor([0.3, -0.2, 1.5])
    assert calibration(margins, torch.tensor([2.0, 1, 3])).error == pytest.approx(
        calibration(torch.tensor([0.3, 0.3, -0.2, 1.5, 1.5, 1.5])).error, abs=1e-12
    )


def test_the_true_margins_are_calibrated_and_twice_them_are_not():
    """10⁵ pairs with margins N(0, 4), chosen first with probability σ(m): ECE within sampling error;
    doubled, ECE = E|σ(2|m|) − σ(|m|)|."""
    generator = torch.Generator().manual_seed(0)
    true = 2 * torch.randn(100_000, generator=generator, dtype=torch.float64)
    wins = torch.rand(100_000, generator=generator, dtype=torch.float64) < torch.sigmoid(true)
    signed = torch.where(wins, true, -true)  # chosen minus rejected
    assert calibration(signed).error < 0.005
    expected = (torch.sigmoid(2 * true.abs()) - torch.sigmoid(true.abs())).mean().item()
    assert calibration(2 * signed).error == pytest.approx(expected, abs=0.005) and expected > 0.08


def test_ties_are_half_right_and_bad_input_is_refused():
    assert calibration(torch.zeros(4)).error == 0.0
    for margins in (torch.zeros(0), torch.tensor([math.nan])):
        with pytest.raises(ArgumentError, match="finite margins"):
            calibration(margins)
