"""Means, errors and verdicts on noise, against SciPy."""

import math

import pytest
from scipy import stats

from multiref.errors import ArgumentError
from multiref.report.noise import Measure, critical_t, paired


def test_mean_and_standard_error_are_the_textbook_ones() -> None:
    values = [0.3, -1.2, 2.5, 0.9]
    measure = Measure.of(values)
    assert measure.mean == pytest.approx(sum(values) / 4, abs=1e-15)
    assert measure.error == pytest.approx(stats.sem(values), rel=1e-14)


def test_one_seed_has_no_error_and_says_nothing() -> None:
    """With n = 1 the variance is unknown, so no difference may be called real, however large."""
    assert Measure.of([7.0]) == Measure(7.0, None, 1)
    assert paired([100.0], [0.0]).within_noise
    with pytest.raises(ArgumentError):
        Measure.of([])


@pytest.mark.parametrize("freedom", [1, 2, 3, 7, 15, 29, 30, 31, 60, 500])
def test_quantiles_are_student_s(freedom: int) -> None:
    assert critical_t(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=1.1e-3)


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.2, 0.4, 1.0, 3.0])
@pytest.mark.parametrize("n", [2, 3, 5, 9])
def test_the_verdict_is_the_paired_t_test(shift: float, n: int) -> None:
    """within_noise ⟺ the two-sided paired t-test has p ≥ 0.05."""
    a = [shift + math.sin(3.7 * i) for i in range(n)]
    b = [0.8 * math.sin(3.7 * i) + 0.1 * math.cos(i) for i in range(n)]
    difference = paired(a, b)
    assert difference.within_noise == (stats.ttest_rel(a, b).pvalue >= 0.05)
    assert difference.mean == pytest.approx(sum(a) / n - sum(b) / n, abs=1e-14)


def test_pairing_removes_what_the_seeds_share() -> None:
    """a_i = s_i + 1 and b_i = s_i: the difference is exactly one with error zero, though each spreads widely."""
    shared = [10.0, -20.0, 5.0]
    difference = paired([s + 1 for s in shared], shared)
    assert (difference.mean, difference.error, difference.within_noise) == (1.0, 0.0, False)
    with pytest.raises(ArgumentError, match="same seeds"):
        paired([1.0, 2.0], [1.0])


def test_text_says_the_sign_and_the_verdict() -> None:
    assert Measure(-0.00004, 0.001, 3).text() == "0.000 ± 0.001"
    assert Measure(-0.5).text(1) == "−0.5"
    assert paired([1.0, 1.1, 0.9], [1.0, 0.9, 1.2]).text().endswith("(within noise)")
    assert "noise" not in paired([1.0, 1.1, 1.2], [0.0, 0.1, 0.2]).text()
