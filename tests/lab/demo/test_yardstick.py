"""The yardstick against the same numbers computed with NumPy alone, in loops."""

import numpy as np
import pytest
import torch

import multiref as mr
from multiref_lab.demo.settings import rules
from multiref_lab.demo.yardstick import Answers, Yardstick

WEIGHTS, BETA, SCALE = (0.7, 0.3), 1.7, 2.0


@pytest.fixture(scope="module")
def bench(tiny_world):  # type: ignore[no-untyped-def]
    problems = tiny_world.problems(6, 0, held_out=True)
    yardstick = Yardstick(Answers.of(tiny_world, problems, scale=SCALE), mr.ReverseKL(WEIGHTS), BETA)
    return yardstick, tiny_world.logps(tiny_world.base, problems), problems, tiny_world


def test_every_number_is_what_numpy_computes(bench) -> None:  # type: ignore[no-untyped-def]
    """J, π*, KL(π‖π*), KL(π‖π_k), reward, accuracy: docs/theory.md 1 written out per prompt."""
    yardstick, log_policy, problems, world = bench
    found = yardstick.measure(log_policy)
    refs, policy = yardstick.answers.ref_logps.numpy(), log_policy.numpy()
    sums: dict[str, list[float]] = {}
    for n, problem in enumerate(problems):
        reward = np.array([SCALE * world.reward(problem.prompt, text) for text in world.answers])
        star = WEIGHTS[0] * refs[0, n] + WEIGHTS[1] * refs[1, n] + reward / BETA
        star -= np.log(np.sum(np.exp(star - star.max()))) + star.max()
        p = np.exp(policy[n])
        kls = [float(np.sum(p * (policy[n] - refs[k, n]))) for k in range(2)]
        price = WEIGHTS[0] * kls[0] + WEIGHTS[1] * kls[1]
        numbers = {"J": p @ reward - BETA * price, "gap": np.sum(p * (policy[n] - star)), "reward": p @ reward, "price": price}
        numbers |= {
            "kl/adder": kls[0],
            "kl/picker": kls[1],
            f"accuracy/{problem.skill}": p[world.answers.index(" " + problem.answer)],
        }
        for name, value in numbers.items():
            sums.setdefault(name, []).append(float(value))
    assert found.keys() == sums.keys()
    for name, values in sums.items():
        assert found[name] == pytest.approx(np.mean(values), abs=1e-11), name


def test_regret_is_beta_times_kl_to_the_optimum(bench) -> None:  # type: ignore[no-untyped-def]
    """J* − J(π) = β KL(π‖π*), for any policy: the base, a reference, and one drawn at random."""
    yardstick, log_policy, *_ = bench
    best = yardstick.measure(yardstick.optimum.log_policy)
    assert best["gap"] == pytest.approx(0, abs=1e-12)
    random = torch.randn(log_policy.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(1)
    for policy in (log_policy, yardstick.answers.ref_logps[1], random):
        numbers = yardstick.measure(policy)
        assert best["J"] - numbers["J"] == pytest.approx(BETA * numbers["gap"], abs=1e-10)


def test_own_regret_is_zero_at_each_rule_s_optimum_and_positive_elsewhere(bench) -> None:  # type: ignore[no-untyped-def]
    yardstick, log_policy, *_ = bench
    for rule in rules(WEIGHTS):
        end = yardstick.solution(rule.regularizer).log_policy
        assert yardstick.own(end, rule.regularizer)["own/regret"] == pytest.approx(0, abs=1e-10), rule.name
        assert yardstick.own(log_policy, rule.regularizer)["own/regret"] > 1e-3, rule.name
        assert yardstick.measure(end)["J"] <= yardstick.measure(yardstick.optimum.log_policy)["J"] + 1e-12


def test_the_frontier_is_what_it_says(bench) -> None:  # type: ignore[no-untyped-def]
    """Price and reward fall as β grows; the slope of the curve at β is β (the envelope theorem), to the width of the step."""
    yardstick, *_ = bench
    betas = [1.0, 1.001, 1.002]
    (p0, r0), (p1, r1), (p2, r2) = yardstick.frontier(betas)
    assert p0 > p1 > p2 and r0 > r1 > r2
    assert (r0 - r2) / (p0 - p2) == pytest.approx(1.001, rel=1e-5)
    floor = yardstick.disagreement
    assert floor <= yardstick.frontier([1e6])[0][0] <= floor + 1e-6


def test_no_policy_has_more_reward_than_its_price_can_buy(bench) -> None:  # type: ignore[no-untyped-def]
    """best_reward(price(π)) ≥ reward(π) for any π, with equality on the frontier (Lagrange:
    the optimum at β is best for its price)."""
    yardstick, log_policy, *_ = bench
    for rule in rules(WEIGHTS):
        numbers = yardstick.measure(yardstick.solution(rule.regularizer).log_policy)
        assert yardstick.best_reward(numbers["price"]) >= numbers["reward"] - 1e-9
    for beta in (0.5, BETA, 10.0):
        ((price, reward),) = yardstick.frontier([beta])
        assert yardstick.best_reward(price) == pytest.approx(reward, abs=1e-9)
    numbers = yardstick.measure(log_policy)
    assert yardstick.best_reward(numbers["price"]) > numbers["reward"] + 1e-4
    assert np.isnan(yardstick.best_reward(0.9 * yardstick.disagreement))
    assert yardstick.best_reward(1e3) == pytest.approx(2 * SCALE, abs=1e-3)
