"""The race at its smallest: what it records, that it goes on where it stopped, what its figures and table say; worlds on the seed axis."""

import json

import pytest
import torch

from multiref.errors import ArgumentError
from multiref.lab.bilevel.language import enumerable_world
from multiref.lab.bilevel.race import race
from multiref.lab.bilevel.race_figures import curve, draw_all, summary
from multiref.training.bilevel import Bilevel, OnlineDPO

SIZES = {"prompts": 4, "vocabulary": 3, "length": 2, "width": 12}
METHODS = (Bilevel("U1"), OnlineDPO(), Bilevel("U1", loop="momentum"))


@pytest.fixture(scope="module")
def histories(tmp_path_factory):
    out, said = tmp_path_factory.mktemp("race") / "race.json", []
    options = {
        "beta": 0.5,
        "seen": 8,
        "world": 0,
        "seeds": 2,
        "labels": 800,
        "work": 80,
        "out": out,
        "say": said.append,
        **SIZES,
    }
    race(METHODS[:1], **options)
    race(METHODS, **options)
    assert len(said) == 3  # the first was not run again
    return json.loads(out.read_text())["beta=0.5 seen=8 world=0"]


def test_every_method_spends_the_same_labels_and_is_measured_at_the_same_places(histories):
    assert set(histories) == {"bilevel U1", "online DPO", "bilevel U1, momentum loop"}
    for lines in histories.values():
        assert lines[0]["labels"] == 0 and 780 <= lines[-1]["labels"] <= 800 and len(lines) == 10
        assert lines[0]["gap"] == histories["online DPO"][0]["gap"]


def test_curves_are_shares_of_the_first(histories):
    lines = histories["online DPO"]
    found = curve("x", lines, "gap")
    assert found.y[-1] == pytest.approx(sum(b / a for a, b in zip(lines[0]["gap"], lines[-1]["gap"])) / 2, rel=1e-4)
    assert found.low[-1] <= found.y[-1] <= found.high[-1] and len(found.x) == len(lines) - 1


def test_figures_and_table(histories, tmp_path):
    assert all(path.stat().st_size > 5000 for path in draw_all(histories, tmp_path))
    rows = {row.split(" | ")[0].strip("| "): row for row in summary(histories)}
    assert rows["online DPO"].count("|") == rows["bilevel U1"].count("|") == 9
    assert " / " in rows["bilevel U1"] and " / " not in rows["online DPO"]


def test_worlds_of_their_own_are_like_one_world_each():
    """Labels, scores and measures of seed 1 come from world 1: the world built alone from the same draws gives the same numbers."""
    both = enumerable_world(2, worlds=2, dimension=3, **SIZES)
    assert both.reward.shape == (2, 4, 9) and not torch.allclose(both.reward[0], both.reward[1])
    x = torch.arange(4)
    y = torch.cartesian_prod(torch.arange(3), torch.arange(3)).expand(2, 4, 9, 2)
    assert torch.allclose(both.task.ref_logps(x, y).double(), both.ref_table, atol=1e-6)
    assert torch.allclose(both.task.policy.table(), both.ref_table[0], atol=1e-6)
    features = both.task.reward_model.features(x, y)
    with torch.no_grad():
        fitted = torch.linalg.lstsq(features.flatten(1, 2), both.reward.flatten(1).unsqueeze(-1)).solution.squeeze(-1)
        both.task.reward_model.phi.copy_(fitted)
        assert torch.allclose(both.task.reward_model(x, y), both.reward, atol=1e-4)
    sure = torch.stack([both.reward[s].argsort(-1, descending=True) for s in range(2)])
    best, worst = (y[0, 0][sure[..., k]] for k in (0, -1))
    wins = both.task.oracle(x.repeat(500), best.repeat(1, 500, 1), worst.repeat(1, 500, 1), torch.Generator().manual_seed(0))
    expected = torch.sigmoid(both.reward.amax(-1) - both.reward.amin(-1)).mean(-1)
    assert torch.allclose(wins.mean(-1), expected, atol=0.05)


def test_a_number_of_worlds_that_does_not_fit_is_refused():
    with pytest.raises(ArgumentError, match="worlds"):
        enumerable_world(3, worlds=2, **SIZES)
