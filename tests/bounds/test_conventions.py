"""Conversions, against the equations that define the letters."""

import numpy as np
import pytest

from multiref import bounds
from multiref.errors import ArgumentError


def test_strengths_agree_on_what_multiplies_the_kl():
    letters = bounds.strengths(0.1)
    assert bounds.convert_strength(np.float32(0.5), source="beta", target="gamma") == 2
    assert letters == pytest.approx({"beta": 0.1, "gamma": 10, "eta": 10, "eta-gshf": 0.1, "lambda": 0.1, "temperature": 0.1})
    for name, value in letters.items():
        assert bounds.convert_strength(value, source=name, target="beta") == pytest.approx(0.1)


def test_targets_are_squares_of_each_other():
    assert bounds.convert_target(0.1, source="norm", target="squared-norm") == pytest.approx(0.01)
    assert bounds.convert_target(0.01, source="squared-norm", target="norm") == pytest.approx(0.1)
    assert bounds.convert_target(0.3, source="norm", target="norm") == 0.3


def test_seven_halves_is_seven():
    """ε = ε_A², so (ε_A²)^(−7/2) = ε_A^(−7): the cost of one target, counted in both conventions, is one number."""
    read = bounds.convert_exponent(3.5, stated="squared-norm")
    assert (read.norm, read.squared_norm) == (7, 3.5)
    epsilon = 0.2
    squared = bounds.convert_target(epsilon, source="norm", target="squared-norm")
    assert epsilon**-read.norm == pytest.approx(squared**-read.squared_norm)
    assert bounds.convert_exponent(7, stated="norm") == read
    assert "ε^(−7)" in str(read) and "ε^(−3.5)" in str(read)


@pytest.mark.parametrize(
    "call",
    [
        lambda: bounds.convert_strength(0.1, source="beta", target="tau"),
        lambda: bounds.convert_strength(0.0, source="beta", target="gamma"),
        lambda: bounds.convert_target(-1, source="norm", target="squared-norm"),
        lambda: bounds.convert_exponent(3.5, stated="A"),
        lambda: bounds.convert_exponent(-1, stated="norm"),
    ],
)
def test_refusals(call):
    with pytest.raises(ArgumentError, match="expected"):
        call()
