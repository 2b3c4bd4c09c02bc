"""Certificates against tables where J, J* and the regret are known."""

import math

import pytest

import multiref as mr
from multiref.errors import ArgumentError
from multiref.evaluation import Effort, certificate
from multiref.models import Generation
from tests.decoding.worlds import BETA, LENGTH, Truth, W, references, reward, tables

RULE = mr.ReverseKL(W)


def truths(made, beta=BETA):
    """J*, and J of each table."""
    truth = Truth(made, beta=beta)
    each = [float((row.exp() * (truth.rewards - beta * (row - truth.log_pool))).sum()) for row in truth.each]
    return beta * truth.log_partition, each


def certified(made, seed=0, **options):
    refs = references(made)
    given = {"baseline": refs["q"], "reward_max": 1.0, "log_ratio_max": 12.0, "generation": Generation(LENGTH), **options}
    effort = given.pop("effort", Effort(islands=100, particles=1, samples=100, seed=seed))
    beta = given.pop("beta", BETA)
    return certificate(refs["p"], refs, RULE, reward, beta, ["x0"], effort=effort, **given)


def test_every_line_holds_and_says_what_it_proves():
    made = tables()
    optimum, (value, base) = truths(made)
    found = certified(made)
    assert found.optimum[0] <= optimum <= found.optimum[1] and found.value[0] <= value <= found.value[1]
    assert found.regret[0] <= optimum - value <= found.regret[1] < 12 * BETA + 1
    said = str(found)
    assert all(word in said for word in ("regret ≤", "regret ≥", "certified", "not for prompts like them"))
    if found.share is not None:
        assert found.share[0] <= (value - base) / (optimum - base) <= found.share[1]
    assert "asymptotic" in str(certified(made, log_ratio_max=None))


def test_what_is_refused():
    """The upper side without a maximum, and with fewer islands than it needs (that number is named); a share where the baseline
    is not surely below; sampling that is not the policy's; a maximum that does not hold."""
    made = tables()
    found = certified(made, reward_max=None)
    assert found.optimum[1] == math.inf and "refused without reward_max" in str(found) and math.isfinite(found.optimum[0])
    few = certified(made, beta=0.05, effort=Effort(islands=8, particles=4, samples=20), log_ratio_max=None)
    assert few.optimum[1] == pytest.approx(1.0) and "needs about" in str(few)
    assert "share: refused" in str(certified(made, effort=Effort(islands=4, particles=2, samples=4)))
    for options, message in (
        ({"generation": Generation(LENGTH, temperature=0.7)}, "temperature 1"),
        ({"generation": Generation(LENGTH, top_p=0.9)}, "temperature 1"),
        ({"reward_max": 0.3}, "reward_max"),
        ({"log_ratio_max": 0.01}, "log_ratio_max is 0.01"),
        ({"delta": 1.5}, "delta"),
    ):
        with pytest.raises(ArgumentError, match=message):
            certified(made, **options)
    with pytest.raises(ArgumentError, match="reverse KL"):
        refs = references(made)
        certificate(refs["p"], refs, mr.ForwardKL(W), reward, BETA, ["x0"])


@pytest.mark.slow
def test_coverage_on_tables():
    """At 95 % at least 94 of 100 certificates hold in every line."""
    made = tables()
    optimum, (value, base) = truths(made)
    held = 0
    for seed in range(100):
        found = certified(made, seed=1000 * seed)
        good = found.optimum[0] <= optimum <= found.optimum[1] and found.value[0] <= value <= found.value[1]
        good &= found.regret[0] <= optimum - value <= found.regret[1]
        if found.share is not None:
            good &= found.share[0] <= (value - base) / (optimum - base) <= found.share[1]
        held += good
    assert held >= 94
