"""Limits, clips and rates against numbers worked out by hand: a constant that is wrong changes no shape and hardly a curve."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import multiref as mr
from multiref.models import Encoded
from multiref.training import Preference
from multiref.training.iterative import Bilevel, Plan, State, Task, train
from multiref.training.online import GRPO, RLOO, AdaptiveBeta, OnlineArguments, PenaltyInReward, Samples, compute_surrogate
from multiref.training.online.batch import Batch, rollout_metrics
from multiref.training.online.methods import leave_one_out, standardised
from multiref_lab.toys import LinearReward, TableOracle, TabularPolicy


@pytest.mark.parametrize(
    ("alpha", "beta", "limit"), [(0.0, 0.1, 4.615121), (0.5, 0.1, 9.230241), (3.0, 0.1, 2.307560), (2.0, 2.5, 1.609438)]
)
def test_the_limit_of_the_exact_reward(alpha, beta, limit):
    """log(1 + 10/β)/|1 − α|: log 101 = 4.615121, twice it, half of it; log 5 = 1.609438."""
    assert Preference.of(mr.AlphaDivergence(alpha=alpha), beta).log_ratio_limit == pytest.approx(limit, abs=1e-6)


def test_beyond_the_limit_the_slope_is_beta():
    """α = 0, β = 10, R = 10: limit log 2; at ℓ = log 2 + 3 the reward is 10 (1 − ½) + 10 · 3 = 35;
    at its mirror −10 − 30 = −40."""
    objective = Preference.of(mr.ForwardKL(), 10.0)
    log_ratio = torch.tensor([[math.log(2) + 3, -math.log(2) - 3]], dtype=torch.float64)
    pairs = mr.training.PairLogps(log_ratio, torch.zeros(1, 1, 2, dtype=torch.float64), torch.ones(1, 2), torch.ones(1, 1, 2))
    assert objective.rewards(pairs)[0].tolist() == pytest.approx([35.0, -40.0])


@pytest.mark.parametrize(("kl", "after"), [(1.1, 0.505), (3.0, 0.51), (0.0, 0.49), (0.9, 0.495)])
def test_beta_moves_by_at_most_a_fifth_of_its_rate(kl, after):
    """β (1 + 0.1 · clip(KL/1 − 1, ±0.2)) from ½."""
    assert AdaptiveBeta(target=1.0, rate=0.1).next(0.5, kl) == pytest.approx(after)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [("constant", [0.5, 1, 1, 1, 1]), ("linear", [0.5, 1, 0.75, 0.5, 0.125]), ("cosine", [0.5, 1, 0.8535534, 0.5, 0.0380602])],
)
def test_the_learning_rate_of_a_step(schedule, rates):
    """Ten steps, two of them warm-up; steps 0, 1, 4, 6, 9, the last of them 0, 0, ¼, ½ and 7/8 of the rest done."""
    args = OnlineArguments(steps=10, warmup=0.2, learning_rate=1.0, schedule=schedule)
    assert [args.rate(step) for step in (0, 1, 4, 6, 9)] == pytest.approx(rates, abs=1e-6)


def test_numbers_of_numpy_are_numbers():
    args = OnlineArguments(steps=np.int64(3), seed=np.int64(1), learning_rate=np.float32(0.5))
    assert type(args.steps) is int and args.rate(0) == 0.5


@pytest.mark.parametrize(("warmup", "steps"), [(0.05, 50), (0.07, 100), (2.5, 10)], ids=["2.5 steps", "7.0…01", "given as 2.5"])
def test_the_warm_up_ends_at_the_peak(warmup, steps):
    """Also where the share of the steps is no whole number."""
    args = OnlineArguments(steps=steps, warmup=warmup, learning_rate=1.0, schedule="constant")
    assert max(map(args.rate, range(steps))) == args.rate(steps - 1) == 1.0


def test_baselines():
    """Of returns 1, 2, 6: less the mean of the other two, 4, 3.5, 1.5; and (R − 3)/(√7 + 10⁻⁴)."""
    returns = torch.tensor([[1.0, 2.0, 6.0]], dtype=torch.float64)
    assert leave_one_out(returns)[0].tolist() == pytest.approx([-3.0, -1.5, 4.5])
    assert standardised(returns)[0].tolist() == pytest.approx([x / (7**0.5 + 1e-4) for x in (-2.0, -1.0, 3.0)], rel=1e-12)


def test_what_is_clipped():
    """Ratios 1.1, 1.3, 0.9, 0.7 at ε = 0.2 with advantages +, +, −, −: the second and the fourth have no gradient."""
    logps = torch.log(torch.tensor([[1.1], [1.3], [0.9], [0.7]], dtype=torch.float64)).requires_grad_()
    old = torch.zeros(4, 1, dtype=torch.float64)
    samples = Samples(logps, torch.ones(4, 1, dtype=torch.bool), torch.zeros(1, 4), old_token_logps=old)
    found = compute_surrogate(
        samples,
        torch.tensor([1.0, 1.0, -1.0, -1.0]),
        mr.ReverseKL(),
        method=GRPO(group=4, clip=0.2),
        penalty=PenaltyInReward(),
        beta=0.0,
    )
    assert found.clipped.tolist() == [0, 1, 0, 1]
    advantage = 4 / 3
    (gradient,) = torch.autograd.grad(found.losses.sum(), logps)
    assert gradient[:, 0].tolist() == pytest.approx([-1.1 * advantage, 0, 0.9 * advantage, 0])
    assert RLOO().clip is None, "unbiased by default"


def test_the_figures_of_a_step():
    """One prompt, two completions: log π −1, −2; log π_k −1.5, −1.75 (K = 1); rewards 1, 0; β = ½.

    ℓ = ½, −¼: kl 0.125; objective mean(1 − ¼, 0 + ⅛) = 0.4375; disagreement −log((e^{−½} + e^{¼})/2) = 0.055738.
    Weights of the optimum, r/β − ℓ = 1.5, 0.25: ess (e^{1.5} + e^{.25})²/(e³ + e^{.5})/2 = 0.767016; regret
    ½ (log((e^{1.5} + e^{.25})/2) − 0.875) = 0.0921.
    """
    rollout = SimpleNamespace(completion_ids=((3,), (4, 5)), ended=(True, False))
    batch = Batch(
        [rollout],
        2,
        torch.tensor([1.0, 0.0], dtype=torch.float64),
        {},
        {"completions": torch.tensor([[-1.5, -1.75]])},
        torch.ones(1),
        None,
    )
    logps = torch.tensor([[-1.0, 0.0], [-0.5, -1.5]], dtype=torch.float64)
    found = rollout_metrics(batch, logps, mr.ReverseKL(), beta=0.5, names=("a",))
    first, second = math.exp(1.5), math.exp(0.25)
    assert found["kl"] == pytest.approx(0.125) and found["objective"] == pytest.approx(0.4375)
    assert found["disagreement"] == pytest.approx(-math.log((math.exp(-0.5) + math.exp(0.25)) / 2))
    assert found["ess"] == pytest.approx((first + second) ** 2 / (first**2 + second**2) / 2)
    assert found["regret"] == pytest.approx(0.5 * (math.log((first + second) / 2) - 0.875))
    assert found["completions/mean_length"] == 1.5 and found["completions/clipped_ratio"] == 0.5
    assert found["logps/per_token"] == pytest.approx(-1.0)
    two = replace(batch, refs={"completions": torch.tensor([[-1.5, -1.75], [-0.5, -2.75]])}, weights=torch.full((2,), 0.5))
    harmonic = rollout_metrics(two, logps, mr.PooledKL(order=-1.0), beta=0.5, names=("a", "b"))
    pools = [-math.log((math.exp(a) + math.exp(b)) / 2) for a, b in ((1.5, 0.5), (1.75, 2.75))]
    assert harmonic["objective"] == pytest.approx(0.5 - 0.5 * ((-1 - pools[0]) + (-2 - pools[1])) / 2)
    assert "objective" not in rollout_metrics(two, logps, mr.ForwardKL(), beta=0.5, names=("a", "b"))


def test_sigma_falls_to_a_tenth():
    """½ (k + 1)^(−1): ½, ⅛, and from k = 9 on 0.05."""
    method = Bilevel("likelihood", "two_policies", sigma=0.5, sigma_decay=1.0)
    assert [method.sigma_at(k) for k in (0, 3, 9, 99)] == pytest.approx([0.5, 0.125, 0.05, 0.05])


def test_the_rates_of_an_iterative_run():
    """Three rounds: the policy's rate 1, 0.6, 0.2 of 0.01 (final_rate 0.2); the reward's 0.3/(1 + k/2)."""
    task = Task(
        2,
        TabularPolicy(torch.zeros(2, 3).log_softmax(-1), 3, 1, 1),
        lambda x, y: torch.full((1, *y.shape[:-1]), -math.log(3)),
        mr.ReverseKL(),
        0.5,
        TableOracle(torch.zeros(2, 3), 3),
        LinearReward(torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0)), 3, 1),
    )
    seen = []

    class Watched(Bilevel):
        def round(self, task: Task, state: State, labels: int, plan: Plan):
            logged = super().round(task, state, labels, plan)
            seen.append((state.optimizer.param_groups[0]["lr"], state.reward_optimizer.param_groups[0]["lr"]))
            return logged

    plan = Plan(
        labels=[4, 8, 12], steps=1, prompts=2, rollouts=2, learning_rate=0.01, final_rate=0.2, reward_rate=0.3, reward_decay=2.0
    )
    train(task, Watched(), plan)
    assert [rates[0] for rates in seen] == pytest.approx([0.01, 0.006, 0.002])
    assert [rates[1] for rates in seen] == pytest.approx([0.3, 0.2, 0.15])


def test_a_batch_is_cut_by_its_longest_rows():
    """Encoded prompts of 3 tokens with two completions of at most 2: 2 · (3 + 2) = 10 tokens a prompt;
    a budget of 20 holds two."""
    item = Encoded((1, 2, 3), ((4, 5), (6,)), (False, False))
    rollouts = [SimpleNamespace(prompt_ids=item.prompt_ids, completion_ids=item.completions) for _ in range(3)]
    batch = Batch(rollouts, 2, torch.zeros(6), {}, {}, None, None)
    assert [len(part) for part in batch.passes(20)] == [2, 1] and len(batch.passes(19)) == 3
    routed = Batch(rollouts, 2, torch.zeros(6), {}, {}, torch.tensor([[1.0, 1, 0, 0, 1, 1], [0, 0, 1, 1, 0, 0]]), None)
    assert routed.passes(100) == [[0, 2], [1]]
