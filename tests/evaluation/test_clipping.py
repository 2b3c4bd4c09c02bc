"""`clipped_value` and the χ² of scores: by hand, and whether the bars hold what they say."""

import math

import pytest
import torch

from multiref import bounds
from multiref.errors import ArgumentError
from multiref.evaluation import clipped_value

REWARDS = torch.tensor([[0.5, 1.0], [0.0, 0.5]]).double()
BLIND = torch.diag(torch.tensor([1.0, 0.0]))
RATIOS = torch.tensor([[3.0, -1.0], [-4.0, 0.5]]).double()


def test_by_hand():
    """τ = 2, β = 0.1: r − β c = .3, 1.1, .2, .45; means .7 and .325; hidden .1 · (1 + 2)/4."""
    found = clipped_value(REWARDS, RATIOS, beta=0.1, tau=2.0, delta=0.05)
    assert found.value == pytest.approx(0.5125) and found.clipped == 0.5 and found.hidden == pytest.approx(0.075)
    assert found.error == pytest.approx(0.375 / math.sqrt(2) / math.sqrt(2))
    alpha = math.sqrt(math.log(80) / 4) + math.sqrt(math.log(80) / 8)
    assert found.bar == pytest.approx(1.4 * alpha) and "50.0% clipped" in str(found)
    assert bounds.clip_quantile(samples=1000, rollouts=4) == pytest.approx(0.86, abs=0.002)  # as in the paper
    assert bounds.clip_quantile(samples=1e5, rollouts=1) == pytest.approx(0.981, abs=5e-4)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"tau": 0.0}, "tau"), ({"tau": math.nan}, "tau"), ({"delta": 0.0}, "delta"), ({"delta": 1.0}, "delta"),
        ({"beta": 0.0}, "beta"), ({"rewards": REWARDS + 1}, "rewards"), ({"log_ratios": RATIOS[:1]}, "log_ratios"),
        ({"log_ratios": RATIOS * math.nan}, "NaN"),
    ],
    ids=["tau 0", "tau nan", "delta 0", "delta 1", "beta", "rewards", "shape", "nan"],
)  # fmt: skip
def test_what_cannot_be_evaluated_is_refused(change, says):
    given = {"rewards": REWARDS, "log_ratios": RATIOS, "beta": 0.1, "tau": 2.0, "delta": 0.05, **change}
    with pytest.raises(ArgumentError, match=says):
        clipped_value(given.pop("rewards"), given.pop("log_ratios"), **given)


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: bounds.clip_quantile(samples=10, rollouts=1), "½"),
        (lambda: bounds.clip_quantile(samples=1000, rollouts=4, delta=0.0), "delta"),
        (lambda: bounds.clip_quantile(samples=1000, rollouts=0), "rollouts"),
        (lambda: bounds.rollouts_per_prompt(0.0, 1.0), "prefill"),
        (lambda: bounds.rollouts_per_prompt(1.0, 1.0, rollout_deviation=1.0), "both"),
        (lambda: bounds.chi_squared_from_scores(torch.zeros(3), torch.zeros(2, 4)), "ref_logps"),
        (lambda: bounds.chi_squared_from_scores(torch.full((3,), 0.4), torch.zeros(2, 3)), "policy_logps.*logarithm"),
        (lambda: bounds.asymptotic_suboptimality(torch.eye(2), torch.eye(3), beta=1.0, samples=9), r"\[d, d\]"),
        (lambda: bounds.asymptotic_suboptimality(torch.eye(2), BLIND, beta=1.0, samples=9), "say nothing"),
        (lambda: bounds.label_privacy_printed(small_epsilon=2.0), "at most 1"),
    ],
    ids=["few", "delta", "rollouts", "prefill", "one deviation", "scores", "probabilities", "shapes", "blind", "printed"],
)  # fmt: skip
def test_bounds_refuse_by_name(call, says):
    with pytest.raises(ArgumentError, match=says):
        call()


def test_budgets_and_the_asymptotic_constant_by_hand():
    assert bounds.rollouts_per_prompt(81.0, 3.0) == pytest.approx(9.0) and bounds.rollouts_per_prompt(0.1, 1.0) == 1.0
    assert bounds.rollouts_per_prompt(32.0, 2.0, rollout_deviation=0.5, prompt_deviation=1.0) == pytest.approx(2.0)
    V, H = torch.tensor([[2.0, 0.5], [0.5, 1.0]]), torch.tensor([[0.5, 0.1], [0.1, 0.25]])
    by_hand = (2 * 0.25 - 2 * 0.5 * 0.1 + 1 * 0.5) / (0.125 - 0.01)  # tr(V adj H)/det H
    assert bounds.asymptotic_suboptimality(V, H, beta=0.5, samples=100) == pytest.approx(by_hand / 100)
    assert bounds.asymptotic_suboptimality(V, 1e-9 * H, beta=0.5, samples=1e11) == pytest.approx(
        by_hand / 100
    )  # in other units


def test_chi_squared_is_an_estimate_and_says_so():
    """π = μ: 0. On an enumerable law the mean of π/μ over samples of π is 1 + χ²."""
    generator = torch.Generator().manual_seed(0)
    refs = torch.randn(2, 6, generator=generator).double().log_softmax(-1)
    policy = torch.randn(6, generator=generator).double().log_softmax(-1)
    drawn = torch.multinomial(policy.exp(), 200_000, replacement=True, generator=generator)
    found = bounds.chi_squared_from_scores(policy[drawn], refs[:, drawn], [0.3, 0.7])
    mixture = 0.3 * refs[0].exp() + 0.7 * refs[1].exp()
    assert abs(found.value - float((policy.exp() ** 2 / mixture).sum() - 1)) < 4 * found.error
    ratio = policy.exp() / mixture
    share = float((policy.exp() * ratio).sum() ** 2 / (policy.exp() * ratio**2).sum())
    assert found.effective_samples == pytest.approx(200_000 * share, rel=0.02) and "estimate, not a bound" in str(found)
    same = bounds.chi_squared_from_scores(refs[0], refs[:1])
    assert same.value == pytest.approx(0, abs=1e-12) and same.effective_samples == pytest.approx(6)


def test_chi_squared_of_two_scores_by_hand():
    """π = 0.4 and 0.1, μ = 0.2 and 0.25: ratios 2 and 0.4, mean 1.2, deviation 1.6/√2, over √2. What μ misses is +∞."""
    refs = torch.tensor([[0.2, 0.1], [0.2, 0.4]]).double().log()
    found = bounds.chi_squared_from_scores(torch.tensor([0.4, 0.1]).double().log(), refs)
    assert (found.value, found.error) == (pytest.approx(0.2), pytest.approx(0.8))
    assert found.effective_samples == pytest.approx(2.4**2 / 4.16) and found.samples == 2
    refs[:, 1] = -math.inf
    missed = bounds.chi_squared_from_scores(torch.tensor([0.4, 0.1]).double().log(), refs)
    assert missed.value == missed.error == math.inf and missed.effective_samples == 1
