"""The race at its smallest: what it records, that it goes on where it stopped, what its figures and table say;
worlds on the seed axis.
"""

from dataclasses import replace

import pytest
import torch

from multiref.errors import ArgumentError
from multiref.training.iterative import Iterative, OnlineDPO, State, begin, train
from multiref_lab.races import enumerable_world
from multiref_lab.races.__main__ import main
from multiref_lab.races.figures import curve, draw_all, summary
from multiref_lab.races.race import CONTESTANTS, Entry, Start, plan_for, race
from multiref_lab.toys import Size

SIZE = Size(4, 3, 2, width=12)
THREE = replace(SIZE, dimension=3)
METHODS = ("known reward", "bilevel stop gradient", "online DPO", "bilevel stop gradient, momentum loop")


class Said:
    """A listener that keeps what it hears."""

    def __init__(self):
        self.phases, self.steps = [], []

    def phase(self, sentence):
        self.phases.append(sentence)

    def progress(self, what, done, of):
        self.steps.append((done, of))


@pytest.fixture(scope="module")
def histories(tmp_path_factory):
    folder, said = tmp_path_factory.mktemp("race"), Said()
    starts = [Start(name, world=0, beta=0.5, size=SIZE, seeds=2, labels=800, work=80) for name in METHODS]
    race(folder, starts[:1]).run(said)
    records = race(folder, starts).run(said)
    assert said.steps == [(0, 1), (1, 1), (1, 4), (2, 4), (3, 4), (4, 4)]  # the first was not run again
    assert {start.setting for start in starts} == {"beta=0.5 seen=8 world=0"}
    return {start.contestant: record.found for start, record in records.items()}


def test_every_method_spends_the_same_labels_and_is_measured_at_the_same_places(histories):
    assert set(histories) == set(METHODS)
    for lines in histories.values():
        assert lines[0]["labels"] == 0 and 780 <= lines[-1]["labels"] <= 800 and len(lines) == 10
        assert lines[0]["gap"] == histories["online DPO"][0]["gap"]


def test_curves_are_shares_of_the_first(histories):
    lines = histories["online DPO"]
    found = curve("x", lines, "gap")
    assert found.y[-1] == pytest.approx(sum(b / a for a, b in zip(lines[0]["gap"], lines[-1]["gap"])) / 2, rel=1e-4)
    assert found.low[-1] <= found.y[-1] <= found.high[-1] and len(found.x) == len(lines) - 1


def test_figures_and_table(histories, tmp_path, request):
    drawn = draw_all(histories, tmp_path)
    assert all(path.stat().st_size > 5000 for path in drawn)
    request.getfixturevalue("undrawn")
    some = draw_all({"online DPO": histories["online DPO"]}, tmp_path, prefix="some")  # no figure without a curve
    assert {path.stem for path in some} == {"some-direct", "some-classes", "some-cost"}
    rows = {row.split(" | ")[0].strip("| "): row for row in summary(histories)}
    assert rows["online DPO"].count("|") == rows["bilevel stop gradient"].count("|") == 10
    assert " / " in rows["bilevel stop gradient"] and " / " not in rows["online DPO"]


def test_every_contestant_has_a_name_a_budget_and_an_optimizer_that_fits_its_policy():
    tasks = {kind: enumerable_world(1, SIZE, policy=kind).task for kind in ("transformer", "log-linear")}
    names = [entry.name for entry in CONTESTANTS]
    assert len(set(names)) == len(names)
    for entry in CONTESTANTS:
        plan = plan_for(entry, 10_000, 2_000)
        assert list(plan.labels)[-1] == 10_000
        begin(tasks[entry.policy], plan)  # Muon for what has no hidden matrices would be refused
    assert Entry(OnlineDPO(), policy="log-linear").name == "online DPO, log-linear policy"


def test_the_known_reward_leaves_what_optimisation_leaves(histories):
    """It ends below the methods that had to learn the reward."""
    gaps = {name: sum(lines[-1]["gap"]) / 2 for name, lines in histories.items()}
    assert gaps["known reward"] == min(gaps.values())


@pytest.mark.parametrize("reward_model", ["features", "transformer"])
def test_measures_against_loops(reward_model):
    """The win rate over the start and the reward's error, summed by hand over every pair and completion."""
    made = enumerable_world(2, THREE, reward_model=reward_model)
    state = State.begin(made.task, seed=0, learning_rate=1e-2, reward_rate=1e-2)
    with torch.no_grad():
        for parameter in [*state.policy.parameters(), *state.reward.parameters()]:
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        found = made.task.measure(state)
    law, start = state.policy.table().exp(), made.ref_table[0, 0].exp()
    y = torch.cartesian_prod(torch.arange(3), torch.arange(3)).expand(2, 4, 9, 2)
    with torch.no_grad():
        error = state.reward(torch.arange(4), y).double() - made.reward
    for s in range(2):
        wins = deviation = 0.0
        for x in range(4):
            for a in range(9):
                for b in range(9):
                    wins += float(law[s, x, a] * start[x, b] / (1 + (made.reward[0, x, b] - made.reward[0, x, a]).exp())) / 4
            mean = sum(float(law[s, x, a] * error[s, x, a]) for a in range(9))
            deviation += sum(float(law[s, x, a]) * (float(error[s, x, a]) - mean) ** 2 for a in range(9)) / 4
        assert float(found["win rate"][s]) == pytest.approx(wins, abs=1e-6)
        assert float(found["reward error here"][s]) == pytest.approx(deviation**0.5, rel=1e-4)


def test_worlds_of_their_own_are_like_one_world_each():
    """Labels, scores and measures of seed 1 come from world 1: the world built alone from the same draws gives the same
    numbers.
    """
    both = enumerable_world(2, THREE, worlds=2)
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


@pytest.mark.slow
def test_a_transformer_reward_learns_the_order_from_labels_alone():
    """Nothing known of the reward: most of what its optimum would leave is gone after 2,000 labels (that of zero reward is the
    start).
    """
    made = enumerable_world(1, THREE, reward_model="transformer")
    entry = Entry(Iterative(), reward_model="transformer")
    _, history = train(made.task, entry.method, plan_for(entry, 2_000, 1_600))
    assert history.lines[-1]["gap of the reward"][0] < 0.2 * history.lines[0]["gap of the reward"][0]


def test_a_number_of_worlds_that_does_not_fit_is_refused():
    with pytest.raises(ArgumentError, match="worlds"):
        enumerable_world(3, SIZE, worlds=2)


def test_the_command_runs_what_is_named_and_goes_on(tmp_path, capsys, undrawn):
    """`python -m multiref_lab.races`: a table and figures for each setting, records of each method."""
    options = {"out": tmp_path, "seeds": 1, "labels": 160, "work": 80, "features": 3, "width": 8, "world": [0]}
    main(**options, only=["online DPO"])
    shown = capsys.readouterr().out
    assert "beta=0.5 seen=3 world=0" in shown and "| online DPO | " in shown and "direct.png" in shown
    assert len(list((tmp_path / "records").glob("*.json"))) == 1
    main(**options, only=["online DPO"])
    assert "1 of them finished before" in capsys.readouterr().out
