"""Betting bounds: they hold as often as they say, and are as tight as they say, where the mean is known."""

import math

import pytest
import torch

from multiref.errors import ArgumentError
from multiref.weighting import log_mean_bounds
from multiref.weighting.intervals import BETS, islands_needed


def empirical_bernstein(x, delta):
    """Half width for [0, 1] (Maurer and Pontil, 2009, Theorem 4), one side at δ."""
    n = len(x)
    return math.sqrt(2 * float(x.var()) * math.log(2 / delta) / n) + 7 * math.log(2 / delta) / (3 * (n - 1))


def missed(draw, log_mean, log_most, *, runs, delta):
    """How often the true mean of logs is outside, below and above."""
    low = high = 0
    for seed in range(runs):
        lower, upper = log_mean_bounds(draw(torch.Generator().manual_seed(seed)), log_most, delta=delta)
        low, high = low + (lower > log_mean), high + (upper < log_mean)
    return low, high


def rare(p, prompts, islands):
    """X = 1 with probability p, else 0.001: skewed, where a normal interval fails."""
    return lambda generator: torch.where(
        torch.rand(prompts, islands, generator=generator, dtype=torch.float64) < p, 0.0, math.log(1e-3)
    )


def test_they_hold_as_often_as_they_say():
    """30 runs of two prompts at δ = 5 % a side: at most 6 misses on either (probability of more below 1 %)."""
    low, high = missed(rare(0.05, 2, 40), math.log(0.05 + 0.95e-3), 0.0, runs=30, delta=0.05)
    assert low <= 6 and high <= 6


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [1, 4])
@pytest.mark.parametrize("p", [0.01, 0.3])
def test_coverage_over_a_thousand_runs(prompts, p):
    """At least 940 of 1,000 two-sided 95 % intervals hold the mean of logs."""
    truth = math.log(p + (1 - p) * 1e-3)
    assert sum(missed(rare(p, prompts, 64), truth, 0.0, runs=1000, delta=0.025)) <= 60


def test_few_islands_of_small_spread():
    """16 islands with a relative spread of 10 %: the lower side is at most 0.4 below log Z, where Markov alone has 3.0; a scale
    of 1e-9 changes nothing. The upper side is refused by what it gives: nothing better than the maximum allows."""
    x = 1 + 0.1 * torch.randn(1, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lower, upper = log_mean_bounds(x.log(), math.log(100.0), delta=0.05)
    assert -0.4 < lower < 0.05 and upper > math.log(5)
    shifted, _ = log_mean_bounds(x.log() - 20, None, delta=0.05)
    assert shifted == pytest.approx(lower - 20, abs=1e-9)


def test_half_the_width_of_empirical_bernstein():
    """1,024 samples whose mean is a hundredth of the maximum: both sides together."""
    x = 0.02 * torch.rand(1024, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    lower, upper = log_mean_bounds(x.log()[None], 0.0, delta=0.025)
    assert lower < math.log(0.01) < upper
    width = empirical_bernstein(x, 0.025)
    theirs = math.log(float(x.mean()) + width) - math.log(max(float(x.mean()) - width, 1e-3))
    assert upper - lower < theirs / 2


def test_many_prompts_cost_less_each():
    """Markov costs log(1/δ) in all, not a prompt: one island each of 20 prompts without spread is short by log(20)/20 and the
    price of not knowing the bet, not by log 20."""
    lower, _ = log_mean_bounds(torch.zeros(20, 1, dtype=torch.float64), None, delta=0.05)
    alone, _ = log_mean_bounds(torch.zeros(1, 1, dtype=torch.float64), None, delta=0.05)
    assert -1.0 < lower < 0 and alone < -2.9


def least_mean(gains, places):
    """min (u_1 + u_2)/2 over φ_1(u_1) + φ_2(u_2) ≤ log 20, over all pairs of places [G]; gains [2, G, I] are X/z − 1 there."""
    phi = torch.stack([(1 + bet * gains).prod(-1) for bet in BETS]).mean(0).log()
    allowed = phi[0][:, None] + phi[1] <= math.log(20)
    return float(((places[:, None] + places) / 2)[allowed].min())


def test_two_prompts_against_every_pair_of_means():
    """δ = 5 %: the dual finds what a search over both means finds, and is never on the wrong side of it."""
    x = (
        torch.rand(2, 12, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        * torch.tensor([[0.9], [0.3]]).double()
    )
    lower, upper = log_mean_bounds(x.log(), 0.0, delta=0.05)
    u, v = torch.linspace(-5, 1, 601, dtype=torch.float64), torch.linspace(0.005, 5, 1000, dtype=torch.float64)  # log z, −log z
    found = least_mean(x[:, None] / u.exp()[None, :, None] - 1, u)
    assert found - 0.03 < lower <= found
    found = -least_mean((1 - x[:, None]) / (1 - (-v).exp())[None, :, None] - 1, v)
    assert found <= upper < found + 0.03


def test_how_many_islands_an_upper_bound_needs():
    """log(1/δ) e^{log_most}/(P Z): 20 e² / 4 at δ = e^−20, Z = e^−2, P = 4."""
    assert islands_needed(-2.0, 0.0, prompts=4, delta=math.exp(-20)) == pytest.approx(5 * math.e**2)


NONE = [(torch.tensor([[0.0, math.nan]]), None), (torch.tensor([[math.inf]]), None), (torch.zeros(1, 3), math.nan)]


def test_what_cannot_be_bounded():
    for samples, most in ((torch.zeros(3), None), (torch.ones(1, 3), 0.0), (torch.zeros(1, 0), None), *NONE):
        with pytest.raises(ArgumentError):
            log_mean_bounds(samples, most, delta=0.05)
