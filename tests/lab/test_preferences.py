"""Counts in place of draws: exactly multinomial, and Bradley–Terry."""

import itertools

import pytest
import torch

from multiref.errors import ArgumentError
from multiref_lab.preferences import PairCounts, multinomial_counts, pair_indices, pair_information, sample_pairs
from multiref_lab.problems import random_bandits


def test_counts_add_up_and_have_multinomial_moments():
    """n = 40, p = (.5, .3, .15, .05, 0): means n p, covariances −n p_i p_j; 20,000 seeds give standard errors below 0.03."""
    p = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0], dtype=torch.float64)
    seeds = 20_000
    counts = multinomial_counts(torch.full((seeds,), 40.0), p.expand(seeds, 5), generator=torch.Generator().manual_seed(0))
    assert (counts.sum(-1) == 40).all() and (counts >= 0).all() and (counts[:, 4] == 0).all()
    torch.testing.assert_close(counts.mean(0), 40 * p, atol=0.1, rtol=0)
    expected = 40 * (torch.diag(p) - torch.outer(p, p))
    torch.testing.assert_close(torch.cov(counts.T), expected, atol=0.35, rtol=0)


def test_small_multinomial_has_the_exact_law():
    """Two draws on three outcomes: all six results, against n!/Π c! Π p^c."""
    p = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    seeds = 60_000
    counts = multinomial_counts(torch.full((seeds,), 2.0), p.expand(seeds, 3), generator=torch.Generator().manual_seed(1))
    for result in itertools.product(range(3), repeat=3):
        if sum(result) != 2:
            continue
        share = (counts == torch.tensor(result, dtype=torch.float64)).all(-1).double().mean().item()
        exact = (2 if max(result) == 1 else 1) * torch.prod(p ** torch.tensor(result)).item()
        assert abs(share - exact) < 4 * (exact * (1 - exact) / seeds) ** 0.5 + 1e-9


def test_pairs_follow_the_law_and_labels_bradley_terry():
    generator = torch.Generator().manual_seed(2)
    problem = random_bandits(2, prompts=2, completions=4, generator=generator)
    law, n = problem.law("mixture"), 4_000_000
    counts = sample_pairs(problem.reward, law, n, generator=generator)
    first, second = pair_indices(4)
    p = law.exp()
    shown = 0.5 * 2 * p[..., first] * p[..., second]
    torch.testing.assert_close((counts.wins + counts.losses) / n, shown, atol=1.5e-3, rtol=0)
    rate = torch.sigmoid(problem.reward[..., first] - problem.reward[..., second])
    torch.testing.assert_close(counts.wins / (counts.wins + counts.losses), rate, atol=0.01, rtol=0)


def test_sizes_per_seed_and_prompt_law():
    generator = torch.Generator().manual_seed(3)
    problem = random_bandits(2, prompts=2, completions=3, generator=generator)
    only_first = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).log()
    counts = sample_pairs(
        problem.reward, problem.law("uniform"), torch.tensor([10, 1_000_000]), generator=generator, prompt_logps=only_first
    )
    total = (counts.wins + counts.losses).sum(-1)
    assert (total[:, 1] == 0).all() and total[0, 0] <= 10
    assert abs(total[1, 0] / 1_000_000 - 2 / 3) < 0.005  # one draw in three shows a completion against itself


def test_the_information_of_pairs_is_a_sum_over_both_orders():
    """Σ_{y, y'} w Δφ Δφᵀ, pair by pair; and two data sets are one whose labels are those of both."""
    generator = torch.Generator().manual_seed(5)
    features, weight = torch.randn(2, 4, 3, generator=generator), torch.rand(2, 4, 4, generator=generator)
    weight = weight + weight.mT
    expected = torch.zeros(2, 3, 3)
    for x, y, z in itertools.product(range(2), range(4), range(4)):
        apart = features[x, y] - features[x, z]
        expected[x] += weight[x, y, z] * torch.outer(apart, apart)
    torch.testing.assert_close(pair_information(features, weight), expected)
    one, two = (PairCounts(*pair_indices(3), torch.tensor([[n, 0.0, 1.0]]), torch.tensor([[2.0, n, 0.0]])) for n in (3.0, 5.0))
    assert (one + two).wins.tolist() == [[8, 0, 2]] and (one + two).losses.tolist() == [[4, 8, 0]]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"samples": 0}, "samples"),
        ({"samples": -3}, "positive"),
        ({"law": "bad shape"}, "shape"),
        ({"law": "bad mass"}, "sum to one"),
    ],
)
def test_refusals(change, words):
    generator = torch.Generator().manual_seed(4)
    problem = random_bandits(2, completions=3, generator=generator)
    laws = {"bad shape": problem.law("uniform")[:1], "bad mass": problem.law("uniform") - 1}
    law = laws.get(change.get("law"), problem.law("uniform"))
    with pytest.raises(ArgumentError, match=words):
        sample_pairs(problem.reward, law, change.get("samples", 10), generator=generator)
    with pytest.raises(ArgumentError, match="law"):
        problem.law("reference 7")
