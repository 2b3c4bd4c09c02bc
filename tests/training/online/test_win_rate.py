"""`WinRate`: shares of wins within a group, whom it refuses, and where a table trained on it ends."""

import math

import pytest
import torch

import multiref as mr
from multiref.errors import ArgumentError
from multiref.training.online import GRPO, RLOO, Reinforce, WinRate, judge_by_reward
from tests.training.online.tables import make_trainer, random_table

CHANCES = {("a", "b"): 0.9, ("a", "c"): 0.2, ("b", "c"): 0.6}


def judge(prompts, first, second):
    return [CHANCES[pair] if (pair := (a, b)) in CHANCES else 1 - CHANCES[b, a] for a, b in zip(first, second)]


def test_shares_are_the_formula_and_equal_completions_are_not_asked():
    """(½ + Σ_{j≠i} P(i ≻ j))/G by hand: a: (.5 + .9 + .2)/3."""
    wins = WinRate(judge, group=3)(["x"] * 6, ["a", "b", "c", "a", "a", "b"])
    assert wins[:3] == pytest.approx([1.6 / 3, (0.5 + 0.1 + 0.6) / 3, (0.5 + 0.8 + 0.4) / 3])
    assert wins[3:] == pytest.approx([1.9 / 3, 1.9 / 3, 0.7 / 3])
    assert sum(wins[:3]) == pytest.approx(1.5)


def test_both_orders_take_a_preference_for_a_place_out_and_votes_are_averaged():
    def biased(prompts, first, second):
        return [0.8 * chance + 0.2 for chance in judge(prompts, first, second)]

    fair = WinRate(judge, group=3)(["x"] * 3, ["a", "b", "c"])
    found = WinRate(biased, group=3, both_orders=True)(["x"] * 3, ["a", "b", "c"])
    assert found == pytest.approx([0.5 + 0.8 * (each - 0.5) for each in fair])  # 0.8 P + 0.1: ½ stays ½
    answers = iter([[1], [0], [1], [1]])
    assert WinRate(lambda *_: next(answers), group=2, votes=4)(["x"] * 2, ["a", "b"]) == pytest.approx([1.25 / 2, 0.75 / 2])


@pytest.mark.parametrize("method", [Reinforce(), GRPO(group=3, standardise=True), RLOO(group=4)], ids=repr)
def test_a_method_that_plays_another_game_is_refused(method):
    table = random_table(0)
    with pytest.raises(ArgumentError, match="WinRate"):
        make_trainer(table, [random_table(1)], mr.ReverseKL(), rewards=[WinRate(judge, group=3)], method=method)


@pytest.mark.parametrize(
    "answers, says",
    [
        ([1.2], "1.2"),
        ([math.nan], "nan"),
        (["first"], "first"),
        ([], "0 answers to 1"),
        ([1, 0], "2 answers to 1"),
        (0.5, "found 0.5 .* expected 1 answers"),
    ],
    ids=["above", "nan", "text", "none", "two", "a number"],
)
def test_a_judge_that_answers_no_chance_is_refused(answers, says):
    with pytest.raises(ArgumentError, match=says):
        WinRate(lambda *_: answers, group=2)(["x"] * 2, ["a", "b"])


def test_a_judge_may_be_async():
    async def later(*asked):
        return judge(*asked)

    assert WinRate(later, group=2)(["x"] * 2, ["a", "b"]) == pytest.approx([1.4 / 2, 0.6 / 2])


def test_groups_have_to_fit():
    with pytest.raises(ArgumentError, match="3 in a row"):
        WinRate(judge, group=3)(["x", "x", "y"], ["a", "b", "c"])
    with pytest.raises(ArgumentError, match="group"):
        WinRate(judge, group=1)
    with pytest.raises(ArgumentError, match="votes"):
        WinRate(judge, group=2, votes=0)


@pytest.mark.parametrize(
    "changed", [{"temperature": 2.0}, {"votes": 2}, {"both_orders": True}], ids=lambda value: next(iter(value))
)
def test_a_run_that_goes_on_asks_its_judge_in_the_same_way(changed, tmp_path):
    def run(steps, temperature=1.0, resume=False, **options):
        wins = WinRate(
            judge_by_reward(lambda _, said: [float(len(text)) for text in said], temperature=temperature), group=2, **options
        )
        trainer = make_trainer(
            random_table(0), [random_table(1)], mr.ReverseKL(), rewards=wins, method=RLOO(group=2), steps=steps,
            args={"save_every": 1},
        )  # fmt: skip
        trainer.train(folder=tmp_path, resume=resume)

    run(1)
    with pytest.raises(ArgumentError, match=r"^reward models and judges: the checkpoint was written under"):
        run(2, **changed, resume=True)
    run(2, resume=True)


@pytest.mark.slow
def test_a_table_trained_on_win_rates_ends_at_the_equilibrium():
    """Enumerable, K = 2, G = 8, labels 0 and 1 drawn from P: gap ≤ 5e-4, KL(π‖π*) ≤ 1e-3."""
    generator = torch.Generator().manual_seed(3)
    policy, tables, weights, beta = random_table(0, length=2), [random_table(s, length=2) for s in (1, 2)], [0.4, 0.6], 0.3
    odds = 2 * torch.randn(2, 9, 9, generator=generator, dtype=torch.float64)
    preference = torch.sigmoid(odds - odds.mT)

    def row(text):
        return sum(int(d) * 3 ** (1 - i) for i, d in enumerate(text.replace(" ", "").split("y")[1:]))

    def labels(prompts, first, second):
        chances = torch.stack([preference[int(p[1:]), row(a), row(b)] for p, a, b in zip(prompts, first, second)])
        return torch.bernoulli(chances, generator=generator).tolist()

    refs = torch.stack([table.sequence_logps().detach() for table in tables])
    rule = mr.ReverseKL(weights)
    best = mr.exact.nash(preference, refs, rule, beta=beta)
    trainer = make_trainer(
        policy, tables, rule, beta=beta, rewards=[WinRate(labels, group=8)], method=RLOO(group=8), steps=1500,
        args={"prompts_per_step": 16, "learning_rate": 0.03, "log_every": 100},
    )  # fmt: skip
    trainer.train()
    found = policy.sequence_logps().detach()
    gap = mr.exact.duality_gap(found, preference, refs, rule, beta=beta)
    kl = mr.divergences.kl(found, best.log_policy)
    start = mr.exact.duality_gap(rule.pool(refs).log_softmax(-1), preference, refs, rule, beta=beta)
    print(f"gap {float(gap.mean()):.3g}, KL {float(kl.mean()):.3g}; the pool's gap {float(start.mean()):.3g}")
    assert float(gap.mean()) <= 5e-4 and float(kl.mean()) <= 1e-3 and float(start.mean()) > 5e-3
