"""Tabular and log-linear policies behind the same interface, and training on both of them."""

import pytest
import torch

from multiref.training.iterative import Plan, method_named, train
from multiref_lab.races import enumerable_world
from multiref_lab.toys import LogLinearPolicy, Size, TabularPolicy, completion_index, every_completion

START = torch.randn(3, 9, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
FEATURES = torch.randn(3, 9, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=["tabular", "log-linear"])
def policy(request):
    return TabularPolicy(START, 3, 2, 2) if request.param == "tabular" else LogLinearPolicy(START, FEATURES, 3, 2, 2)


def test_starts_where_it_is_told_and_scores_what_its_table_says(policy):
    assert torch.allclose(policy.table(), START.double().expand(2, -1, -1), atol=1e-6)
    prompts = torch.tensor([2, 0])
    answers = every_completion(3, 2).expand(2, 2, 9, 2)
    assert torch.allclose(policy.logps(prompts, answers).double(), policy.table()[:, prompts], atol=1e-6)


def test_index_and_enumeration_are_inverse():
    assert completion_index(every_completion(3, 2), 3).tolist() == list(range(9))


def test_samples_follow_the_table(policy):
    drawn = completion_index(policy.sample(torch.tensor([1]), 40_000, torch.Generator().manual_seed(2)), 3)
    counted = torch.stack([torch.bincount(row, minlength=9) for row in drawn[:, 0]]) / 40_000
    law = policy.table()[:, 1].exp()
    assert bool(((counted - law).abs() < 5 * (law / 40_000).sqrt() + 1e-4).all())


@pytest.mark.parametrize(("kind", "method"), [("tabular", "bilevel"), ("log-linear", "bilevel"), ("log-linear", "iterative")])
def test_training_closes_most_of_the_gap(kind, method):
    """2,000 labels on 4 prompts × 9 completions with a realisable reward: a tenth of the initial gap or less is left."""
    made = enumerable_world(2, Size(4, 3, 2, width=12, dimension=3), policy=kind)
    plan = Plan(
        labels=range(50, 2001, 50), steps=15, prompts=8, rollouts=8, reward_steps=10, learning_rate=3e-2, reward_rate=0.1,
        final_rate=0.1, measure_at=[2000],
    )  # fmt: skip
    _, history = train(made.task, method_named(method), plan)
    first, last = history.lines[0]["gap"], history.lines[-1]["gap"]
    assert all(b < 0.1 * a for a, b in zip(first, last)), (first, last)
