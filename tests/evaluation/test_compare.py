"""One yardstick: exact figures obey the regret identity, sampled ones agree with them within their error bars."""

import math

import pytest
import torch

import multiref as mr
from multiref.errors import ArgumentError
from multiref.evaluation import compare
from tests.training.world import random_world

BETA = 0.7


def policies(reward, count, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(reward.shape, generator=generator, dtype=torch.float64).log_softmax(-1) for _ in range(count)]


def test_the_gap_is_beta_times_the_divergence_to_the_optimum_and_never_negative():
    """J* − J(π) = β KL(π‖π*) for reverse KL, in the table as in docs/theory.md 1(a)."""
    world = random_world(3, vocabulary=4, length=2)
    regularizer = mr.ReverseKL((0.5, 0.3, 0.2))
    optimum = mr.exact.solve(world.reward, world.ref_logps, regularizer, beta=BETA).log_policy
    table = compare(
        {"random": policies(world.reward, 4, 0), "best": [optimum] * 4}, world.reward, world.ref_logps, regularizer, beta=BETA
    )
    torch.testing.assert_close(table.values["gap"], BETA * table.values["KL(π‖π*)"], rtol=1e-10, atol=1e-12)
    assert float(table.values["gap"][0].min()) > 0.01
    assert table.mean("gap")[1].abs() < 1e-12


def test_figures_by_hand():
    """Two completions, two references: every number from its definition."""
    policy, refs = torch.tensor([0.25, 0.75], dtype=torch.float64), torch.tensor([[0.5, 0.5], [0.2, 0.8]], dtype=torch.float64)
    reward = torch.tensor([1.0, 0.0])
    table = compare(
        {"a": policy.double().log()},
        reward.double(),
        refs.double().log(),
        mr.ReverseKL((0.4, 0.6)),
        beta=BETA,
        correct=reward.double(),
    )
    kl = [sum(p * math.log(p / q) for p, q in zip((0.25, 0.75), row)) for row in ((0.5, 0.5), (0.2, 0.8))]
    assert float(table.mean("KL(π‖reference 1)")) == pytest.approx(kl[0], rel=1e-6)
    assert float(table.mean("KL(π‖reference 2)")) == pytest.approx(kl[1], rel=1e-6)
    assert float(table.mean("J")) == pytest.approx(0.25 - BETA * (0.4 * kl[0] + 0.6 * kl[1]), rel=1e-6)
    assert float(table.mean("accuracy")) == 0.25


def test_differences_are_taken_seed_by_seed():
    """b is a shifted by a constant: their difference has no error although each row has."""
    world = random_world(2)
    runs = policies(world.reward, 5, 1)
    table = compare({"a": runs, "b": runs}, world.reward, world.ref_logps, mr.ReverseKL(), beta=BETA)
    shifted = table.values["J"].clone()
    shifted[1] += 0.125
    table = mr.evaluation.Comparison(table.methods, table.unit, {"J": shifted})
    mean, error = table.difference("J", "b", "a")
    assert mean == pytest.approx(0.125) and error == pytest.approx(0, abs=1e-12)
    assert float(table.error("J")[0]) == pytest.approx(float(shifted[0].std() / 5**0.5))


def test_unequal_seeds_and_shapes_are_refused():
    world = random_world(2)
    runs = policies(world.reward, 3, 1)
    with pytest.raises(ArgumentError, match="as many seeds"):
        compare({"a": runs, "b": runs[:2]}, world.reward, world.ref_logps, mr.ReverseKL(), beta=BETA)
    with pytest.raises(ArgumentError, match="shape"):
        compare({"a": runs[0][:-1]}, world.reward, world.ref_logps, mr.ReverseKL(), beta=BETA)


def test_samples_agree_with_enumeration():
    """A table as language model: J, reward and both KLs from samples lie within four standard errors of the exact ones."""
    from multiref.evaluation import compare_samples
    from multiref.models import Generation, LanguageModel, Tabular, tabular_tokenizer

    world = random_world(2, vocabulary=3, length=2, seed=3)
    tables = [Tabular(3, 2).assign(row) for row in (*world.ref_logps, policies(world.reward, 1, 5)[0])]
    tokenizer = tabular_tokenizer(tables[0])
    tokenizer.eos_token = "<pad>"
    first, second, policy = (LanguageModel(table, tokenizer, str(n)) for n, table in enumerate(tables))
    by_text = dict(zip(world.answers, world.reward.tolist()))
    sampled = compare_samples(
        {"policy": policy}, {"a": first, "b": second}, ["x0"] * 40, {"reward": lambda _, text: by_text[text.replace(" ", "")]},
        Generation(2), weights=(0.3, 0.7), beta=BETA, samples=20,
    )  # fmt: skip
    truth = compare(
        {"policy": tables[2].sequence_logps()[0].detach()},
        world.reward,
        world.ref_logps,
        mr.ReverseKL((0.3, 0.7)),
        beta=BETA,
        names=("a", "b"),
    )
    for metric in ("J", "reward", "KL(π‖a)", "KL(π‖b)"):
        assert abs(sampled.mean(metric)[0] - truth.mean(metric)[0]) < 4 * sampled.error(metric)[0], metric
        assert float(sampled.error(metric)[0]) < 0.05
    v = sampled.values
    torch.testing.assert_close(v["J"], v["reward"] - BETA * (0.3 * v["KL(π‖a)"] + 0.7 * v["KL(π‖b)"]))
