"""Every method on an enumerable world: the shared steps settle where they should, runs resume exactly, failures keep the last good state."""

import pytest
import torch

from multiref.errors import ArgumentError, ConfigError, DataError, StoreError
from multiref.lab.bilevel.language import enumerable_world
from multiref.training.bilevel import METHODS, Bilevel, BilevelTrainer, Plan, State, method_named, train
from multiref.training.bilevel.rewards import completion_index
from multiref.training.bilevel.steps import Diverged, fit_reward, improve

SMALL = {"prompts": 4, "vocabulary": 3, "length": 2, "dimension": 3, "width": 12, "beta": 0.5}
QUICK = {"steps": 2, "prompts": 4, "rollouts": 2, "batch": 16, "reward_steps": 3}


def world(seeds=2, **options):
    return enumerable_world(seeds, **{**SMALL, **options})


def test_policy_gradient_under_the_true_reward_reaches_the_optimum():
    """From the first reference to π* under two: the gap falls to a hundredth, so the penalty, its pool and its sign are right."""
    made = world(1)
    state = State.begin(made.task, seed=0, learning_rate=2e-2, reward_rate=1e-2)
    before = float(made.gap(state.policy.table()))

    def reward(x, y):
        return made.reward[x[None, :, None], completion_index(y, 3)]

    for rate in (3e-2, 5e-3, 1e-3):
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        improve(made.task, state, reward, steps=100, prompts=4, rollouts=32)
    assert float(made.gap(state.policy.table())) < 0.05 * before


def test_reward_fit_recovers_the_truth_from_many_labels():
    made = world(1)
    state = State.begin(made.task, seed=0, learning_rate=1e-3, reward_rate=5e-2)
    from multiref.training.bilevel.steps import ask, own_pairs, some_prompts

    x = some_prompts(made.task, 6_000, state.generator)
    ask(made.task, state, x, own_pairs(state.policy, x, state.generator))
    fit_reward(made.task, state, steps=60, batch=6000)
    measured = made.task.measure(state)
    assert float(measured["reward error at start"]) < 0.15
    assert state.labels_used == 6_000


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("sail", "bilevel")] + ["DP", "PP", "PR"])
def test_iterative_methods_spend_what_they_say_and_do_not_change_the_task(name):
    made = world()
    method = method_named("sail", design=name) if name in ("DP", "PP", "PR") else method_named(name)
    start = made.task.policy.table()
    state, history = train(made.task, method, Plan(labels=[8, 24], **QUICK))
    assert state.labels_used == 24 and [line["labels"] for line in history.lines] == [0, 8, 24]
    assert torch.equal(start, made.task.policy.table())
    assert len(history.lines[-1]["gap"]) == 2 and history.lines[-1]["gap"][0] != history.lines[-1]["gap"][1]


@pytest.mark.parametrize(
    ("objective", "estimator"),
    [("U0", "E1"), ("U0", "E2"), ("U0", "E3"), ("U0", "CG"), ("U1", "E3"), ("U2", "E3"), ("U3", "E1")],
)
def test_bilevel_spends_what_it_says(objective, estimator):
    made = world()
    trainer = BilevelTrainer(made.task, Plan(labels=[16, 32], **QUICK), objective=objective, estimator=estimator)
    history = trainer.train()
    assert history.lines[-1]["labels"] == 32
    assert history.lines[-1]["hypergradient norm"] > 0


@pytest.mark.parametrize("name", ["online-dpo", "two-stage", "gshf", "bilevel"])
def test_a_run_that_was_stopped_goes_on_exactly(name, tmp_path):
    plan = Plan(labels=[16, 32, 48, 64], **QUICK)
    whole, history = train(world().task, method_named(name), plan, folder=tmp_path / "whole")
    train(world().task, method_named(name), Plan(labels=[16, 32], **QUICK), folder=tmp_path / "half")
    if name == "two-stage":  # its stages are shares of the whole budget
        pytest.skip("the first stage is a share of the plan's labels")
    again, later = train(world().task, method_named(name), plan, folder=tmp_path / "half")
    assert all(torch.equal(a, b) for a, b in zip(whole.policy.parameters(), again.policy.parameters()))
    assert [line["gap"] for line in history.lines] == [line["gap"] for line in later.lines]


def test_a_bad_oracle_stops_the_run_and_leaves_the_round_before(tmp_path):
    made, calls = world(), []
    good = made.task.oracle

    def oracle(prompts, first, second, generator):
        calls.append(1)
        answers = good(prompts, first, second, generator)
        return answers if len(calls) < 2 else answers * torch.nan

    made.task.oracle = oracle
    with pytest.raises(DataError, match="neither side"):
        train(made.task, method_named("iterative"), Plan(labels=[8, 16], **QUICK), folder=tmp_path)
    state = State.begin(made.task, seed=0, learning_rate=1e-3, reward_rate=1e-3)
    state.load(tmp_path / "state.pt")
    assert (state.round, state.labels_used) == (1, 8)


def test_a_reward_model_that_diverges_stops_the_run_and_leaves_the_round_before(tmp_path):
    made = world()
    train(made.task, Bilevel("U1"), Plan(labels=[16], **QUICK), folder=tmp_path)
    with pytest.raises(Diverged, match="last good state"):
        train(made.task, Bilevel("U1"), Plan(labels=[16, 32], reward_rate=1e7, **QUICK), folder=tmp_path / "wild")
    with pytest.raises(Diverged):
        state = State.begin(made.task, seed=0, learning_rate=1e-3, reward_rate=1e-3)
        state.reward.phi.data.fill_(torch.nan)
        Bilevel("U1").round(made.task, state, 16, Plan(labels=[16], **QUICK))
    state = State.begin(made.task, seed=0, learning_rate=1e-3, reward_rate=1e-3)
    state.load(tmp_path / "state.pt")
    assert state.round == 1


def test_a_damaged_state_is_refused(tmp_path):
    (tmp_path / "state.pt").write_bytes(b"no state")
    with pytest.raises(StoreError, match="delete it"):
        train(world().task, method_named("iterative"), Plan(labels=[8], **QUICK), folder=tmp_path)


@pytest.mark.parametrize(
    "options", [{"sigma": 0.0}, {"sigma": -1.0}, {"objective": "U4"}, {"estimator": "E9"}, {"loop": "triple"}, {"pairs": 1}]
)
def test_bad_options(options):
    with pytest.raises(ArgumentError, match=next(iter(options))):
        Bilevel(**options)


def test_bad_names_and_plans():
    with pytest.raises(ConfigError, match="expected one of"):
        method_named("ppo")
    with pytest.raises(ConfigError, match="options"):
        method_named("xpo", sigma=1)
    with pytest.raises(ArgumentError, match="growing"):
        Plan(labels=[10, 10])
    with pytest.raises(ArgumentError, match="rollouts"):
        Plan(labels=[10], rollouts=1)
