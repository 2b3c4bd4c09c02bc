"""Weights that change while training: by hand, whatever the micro-batches, and the same after a restart."""

import shutil

import pytest
import torch

import multiref as mr
from multiref.errors import ArgumentError
from multiref.training import PreferenceData, SlidingWindow, ThompsonSampling
from multiref.training.objectives import PairLogps
from tests.training.test_contract import pairs, policy, scores, tokenizer, train  # noqa: F401  # fixtures of the same world


def logps(deltas, lengths):
    """K references that judge B pairs: chosen minus rejected `deltas` [K, B] in nats, after `lengths` [K,
    B] tokens on each side."""
    deltas, lengths = torch.tensor(deltas, dtype=torch.float64), torch.tensor(lengths, dtype=torch.float64)
    both = torch.stack([deltas, torch.zeros_like(deltas)], dim=-1)
    pair = torch.ones(deltas.shape[1], 2, dtype=torch.float64)
    return PairLogps(-pair, both, pair, lengths[..., None].expand_as(both))


def step(strategy, *batches):
    for batch, shares in batches:
        strategy.observe(batch, None, torch.tensor(shares, dtype=torch.float64))
    strategy.on_step_end(None, None, None)


ONE = logps([[2.0, -4.0], [1.0, 1.0]], [[2, 2], [1, 1]])  # per token: reference a says 1 and -2, reference b 1 and 1
TWO = logps([[6.0, 0.0], [1.0, -1.0]], [[2, 2], [1, 1]])  # a says 3 and 0, b 1 and -1


@pytest.mark.parametrize(
    ("statistic", "first", "second"),
    [("discrimination", [3 / 5, 2 / 5], [6 / 10, 4 / 10]), ("accuracy", [1 / 3, 2 / 3], [2.5 / 5.5, 3 / 5.5])],
)
def test_a_window_is_the_share_of_what_each_reference_said(statistic, first, second):
    """|Δ| sums: a 3 then 3, b 2 then 2. Right answers: a 1 then 1½ (a tie is a half), b 2 then 1."""
    strategy = SlidingWindow(window=2, statistic=statistic)
    strategy.start(("a", "b"))
    assert strategy.weights(ONE).tolist() == [0.5, 0.5]
    step(strategy, (ONE, [1, 1]))
    assert strategy.weights(ONE).tolist() == pytest.approx(first)
    step(strategy, (TWO, [1, 1]))
    assert strategy.weights(ONE).tolist() == pytest.approx(second)


def test_a_window_forgets_and_fillers_do_not_count():
    strategy = SlidingWindow(window=1)
    strategy.start(("a", "b"))
    step(strategy, (ONE, [1, 1]))
    step(strategy, (TWO, [1, 0]))  # of TWO only the first pair: a 3, b 1
    assert strategy.weights(ONE).tolist() == pytest.approx([3 / 4, 1 / 4])
    strategy = SlidingWindow(window=1, statistic="accuracy")
    strategy.start(("a", "b"))
    step(strategy, (logps([[1.0], [-1.0]], [[1], [1]]), [1]))  # b is right about nothing
    assert strategy.weights(ONE).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("kind", ["window", "thompson"])
def test_a_second_trainer_begins_anew(kind, policy, tokenizer, pairs, scores, tmp_path):  # noqa: F811
    """One strategy under two trainers, as in a loop over β: what it saw of the first is nothing to the second."""
    held_out = PreferenceData(pairs[:4], scores, tokenizer)
    strategy = SlidingWindow(window=4) if kind == "window" else ThompsonSampling(held_out, hold=1)
    options = {"strategy": strategy, "num_train_epochs": 1, "per_device_train_batch_size": 2}
    first, second = (train(policy, tokenizer, pairs, scores, tmp_path, **options)[0] for _ in range(2))
    assert [line["weights/a"] for line in first] == [line["weights/a"] for line in second]
    assert len({line["weights/a"] for line in first}) > 1


def test_thompson_credits_the_arm_that_was_held(policy, tokenizer, pairs, scores, tmp_path):  # noqa: F811
    """Every judgement adds one to exactly one count, and each step follows one reference alone."""
    held_out = PreferenceData(pairs[:4], scores, tokenizer)
    strategy = ThompsonSampling(held_out, hold=2)
    lines, _ = train(policy, tokenizer, pairs, scores, tmp_path, strategy=strategy, per_device_train_batch_size=4)
    weights = torch.tensor([[line[f"weights/{name}"] for name in "abc"] for line in lines])
    assert len(lines) == 12 and ((weights == 0) | (weights == 1)).all() and (weights.sum(1) == 1).all()
    assert (weights[0::2] == weights[1::2]).all()  # held for two steps
    # six judgements, of which the first only sets the mark
    assert torch.tensor(strategy.counts).sum() == 2 * 3 + 5


def test_thompson_finds_the_arm_whose_steps_lower_the_loss():
    """A bandit apart from any model: arm b always lowers the loss, the others always raise it."""
    strategy = ThompsonSampling(object.__new__(PreferenceData), hold=1)
    strategy._validation.names = ("a", "b", "c")
    strategy.start(("a", "b", "c"))
    strategy._objective = mr.ReverseKL()
    loss = [0.0]
    strategy._loss = lambda model: loss[0]
    for _ in range(60):
        loss[0] += -1.0 if strategy.arm == 1 else 1.0
        strategy.on_step_end(None, None, None)
    assert strategy.counts[1][1] == 1 and strategy.counts[0][0] == strategy.counts[2][0] == 1
    assert strategy.counts[1][0] > 40


@pytest.mark.parametrize("kind", ["window", "thompson"])
def test_a_restart_goes_on_with_the_same_weights(kind, policy, tokenizer, pairs, scores, tmp_path):  # noqa: F811
    def fresh():
        if kind == "window":
            return SlidingWindow(window=3)
        return ThompsonSampling(PreferenceData(pairs[:4], scores, tokenizer), hold=2)

    options = {"per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 5}
    whole, _ = train(policy, tokenizer, pairs, scores, tmp_path / "whole", strategy=fresh(), **options)
    shutil.copytree(tmp_path / "whole" / "checkpoint-5", tmp_path / "cut" / "checkpoint-5")
    resume = str(tmp_path / "cut" / "checkpoint-5")
    rest, _ = train(policy, tokenizer, pairs, scores, tmp_path / "cut", strategy=fresh(), resume=resume, **options)
    after = [line for line in whole if line["step"] > 5]
    for name in ("loss", "weights/a", "weights/b"):
        assert [line[name] for line in rest] == pytest.approx([line[name] for line in after], rel=1e-6), name


def test_micro_batches_do_not_change_the_weights(policy, tokenizer, pairs, scores, tmp_path):  # noqa: F811
    whole, _ = train(policy, tokenizer, pairs, scores, tmp_path / "a", strategy=SlidingWindow(2), per_device_train_batch_size=4)
    cut, _ = train(
        policy,
        tokenizer,
        pairs,
        scores,
        tmp_path / "b",
        strategy=SlidingWindow(2),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
    )
    for name in ("loss", "weights/a"):
        assert [line[name] for line in cut] == pytest.approx([line[name] for line in whole], rel=1e-6), name
    assert len({line["weights/a"] for line in whole}) > 3


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SlidingWindow(0), "window"),
        (lambda: SlidingWindow(statistic="luck"), "luck"),
        (lambda: ThompsonSampling(hold=0), "hold"),
        (lambda: ThompsonSampling().start(("a",)), "validation"),
    ],
)
def test_what_cannot_work_is_refused(make, words):
    with pytest.raises(ArgumentError, match=words):
        make()
