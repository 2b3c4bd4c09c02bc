"""Pairs come from the law they state, and labels from Bradley–Terry."""

import math
from types import SimpleNamespace

import pytest
import torch

from multiref.errors import ArgumentError
from multiref_lab.demo.corpus import points
from multiref_lab.demo.preferences import PairLaw, draw_pairs


def test_labels_follow_bradley_terry(tiny_world) -> None:  # type: ignore[no-untyped-def]
    """Among pairs whose points differ by one, the better is chosen with probability σ(scale); by binomial error, 4 sigma."""
    law = PairLaw(prompts=300, pairs_per_prompt=20, scale=1.5)
    by_margin: dict[int, list[bool]] = {1: [], 2: []}
    for pair in draw_pairs(tiny_world, law, 3):
        margin = points(pair.prompt, pair.chosen) - points(pair.prompt, pair.rejected)
        if margin:
            by_margin[abs(margin)].append(margin > 0)
    for size, wins in by_margin.items():
        expected = 1 / (1 + math.exp(-law.scale * size))
        assert len(wins) > 15
        assert abs(sum(wins) / len(wins) - expected) < 4 * math.sqrt(expected * (1 - expected) / len(wins)), size


def test_answers_come_from_the_mixture_stated(tiny_world) -> None:  # type: ignore[no-untyped-def]
    """One prompt, many pairs: how often each answer occurs is P(y first) + P(y second) = μ(y) + Σ_{z ≠ y} μ(z) μ(y) / (1 −
    μ(z))."""
    law = PairLaw(prompts=1, pairs_per_prompt=4000)
    (problem,) = tiny_world.problems(1, 9)
    peaked = (3 * torch.randn(2, 1, 529, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).log_softmax(-1)
    world = SimpleNamespace(
        problems=tiny_world.problems, rewards=tiny_world.rewards, answers=tiny_world.answers, ref_logps=lambda problems: peaked
    )
    mixture = (peaked[0, 0].exp() + peaked[1, 0].exp()) / 2
    ratio = mixture / (1 - mixture)
    expected = mixture + mixture * (ratio.sum() - ratio)
    place = {text: i for i, text in enumerate(tiny_world.answers)}
    found = torch.zeros_like(mixture)
    for pair in draw_pairs(world, law, 9):  # type: ignore[arg-type]
        assert pair.prompt == problem.prompt and pair.chosen != pair.rejected
        found[place[pair.chosen]] += 1 / 4000
        found[place[pair.rejected]] += 1 / 4000
    error = (expected / 4000).sqrt()
    assert float(((found - expected) / error).abs().max()) < 5
    rare = mixture < 1e-3  # together, where one answer at a time tells little
    assert abs(float((found - expected)[rare].sum())) < 4 * float((expected[rare].sum() / 4000).sqrt())


def test_the_seed_decides_everything(tiny_world) -> None:  # type: ignore[no-untyped-def]
    law = PairLaw(prompts=5, pairs_per_prompt=3)
    assert draw_pairs(tiny_world, law, 1) == draw_pairs(tiny_world, law, 1) != draw_pairs(tiny_world, law, 2)
    assert len(draw_pairs(tiny_world, law, 1)) == 15


@pytest.mark.parametrize("bad", [{"scale": 0.0}, {"prompts": 0}, {"scale": math.nan}])
def test_a_law_that_cannot_be_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ArgumentError):
        PairLaw(**bad)  # type: ignore[arg-type]
