"""Every method on an enumerable world: the shared steps settle where they should, runs resume exactly,
failures keep the last good state."""

import pytest
import torch

from multiref.errors import ArgumentError, ConfigError, DataError, MultirefNotice, StoreError
from multiref.training.iterative import METHODS, Bilevel, BilevelTrainer, LabelsLate, Plan, State, method_named, train
from multiref.training.iterative.steps import Diverged, fit_reward, improve
from multiref_lab.races import enumerable_world
from multiref_lab.toys import Size, at

SMALL = {"size": Size(4, 3, 2, width=12, dimension=3), "beta": 0.5}
QUICK = {"steps": 2, "prompts": 4, "rollouts": 2, "batch": 16, "reward_steps": 3}


def world(seeds=2, **options):
    return enumerable_world(seeds, **{**SMALL, **options})


def test_policy_gradient_under_the_true_reward_reaches_the_optimum():
    """From the first reference to π* under two: the gap falls to a twentieth, so the penalty,
    its pool and its sign are right."""
    made = world(1)
    state = State.begin(made.task, seed=0, learning_rate=2e-2, reward_rate=1e-2)
    before = float(made.gap(state.policy.table()))

    def reward(x, y):
        return at(made.reward, x, y, 3)

    for rate in (3e-2, 5e-3, 1e-3):
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        improve(made.task, state, reward, steps=100, prompts=4, rollouts=32)
    assert float(made.gap(state.policy.table())) < 0.05 * before


def test_weights_that_are_no_numbers_leave_the_round_before():
    """A gradient that is none in a round's last step, under a loss that is one: no later step would say so."""
    made = world(1)
    state = State.begin(made.task, seed=0, learning_rate=2e-2, reward_rate=1e-2)
    calls, (parameter, *_) = iter(range(1, 99)), state.policy.parameters()
    parameter.register_hook(lambda gradient: gradient * torch.nan if next(calls) == 2 * QUICK["steps"] else gradient)
    with pytest.raises(Diverged, match="policy: its weights are no numbers; the last good state is kept"):
        train(made.task, method_named("iterative"), Plan(labels=[8, 24, 48], **QUICK), state=state)
    assert state.round == 1 and all(bool(p.isfinite().all()) for p in state.policy.parameters())


def test_reward_fit_recovers_the_truth_from_many_labels():
    made = world(1)
    state = State.begin(made.task, seed=0, learning_rate=1e-3, reward_rate=5e-2)
    from multiref.training.iterative.steps import ask, some_prompts

    x = some_prompts(made.task, 6_000, state.generator)
    ask(made.task, state, x, state.policy.sample(x, 2, state.generator))
    fit_reward(made.task, state, steps=150, batch=6000, rate=5e-2)
    measured = made.task.measure(state)
    assert float(measured["reward error at start"].detach()) < 0.15
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
    [
        ("likelihood", "two_policies"),
        ("likelihood", "shared_rollouts"),
        ("stop_gradient", "covariance"),
        ("debiased", "covariance"),
        ("win_rate", "two_policies"),
        ("win_rate", "conjugate_gradient"),
    ],
)
def test_bilevel_spends_what_it_says(objective, estimator):
    made = world()
    trainer = BilevelTrainer(made.task, Plan(labels=[16, 32], **QUICK), objective=objective, estimator=estimator)
    history = trainer.train()
    assert history.lines[-1]["labels"] == 32
    assert history.lines[-1]["hypergradient norm"] > 0


def test_a_round_that_cannot_be_bought_is_refused():
    """Two pairs of a prompt, each labelled twice: a round of two labels would have bought four."""
    trainer = BilevelTrainer(world().task, Plan(labels=[2], **QUICK), objective="debiased")
    with pytest.raises(ArgumentError, match="labels: found a round of 2, expected at least 4"):
        trainer.train()
    assert trainer.state.labels_used == 0


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("gshf", {"candidates": 1}, "candidates"), ("gshf", {"ridge": 0.0}, "ridge"), ("xpo", {"optimism": -1.0}, "optimism"),
        ("two-stage", {"first_stage": 1.5}, "first_stage"), ("sail", {"extra": -0.1}, "extra"),
        ("bilevel", {"strength": -1.0}, "strength"), ("bilevel", {"pairs": 1}, "pairs"),
    ],
)  # fmt: skip
def test_options_that_no_method_can_have_are_refused(name, options, said):
    with pytest.raises(ArgumentError, match=f"^{said}: expected"):
        method_named(name, **options)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"estimator": "conjugate_gradient"}, "estimator"),
        ({"objective": "likelihood", "sigma": 0.2}, "sigma"),
        ({"momentum": 0.5, "loop": "single"}, "momentum"),
        ({"ridge": 2.0}, "ridge"),
        ({"strength": 0.5}, "strength"),
    ],
)
def test_options_that_nothing_reads_are_said(options, name):
    with pytest.warns(MultirefNotice, match=f"^{name}: .* has no effect"):
        Bilevel(**options)


@pytest.mark.parametrize("method", ["online-dpo", "iterative"])
def test_numbers_of_a_plan_that_a_method_does_not_read_are_said(method):
    """In Python as in a run's file: online DPO fits no reward, iterative RLHF takes no steps on labels; it says no others."""
    given = {"reward_steps": 7, "batch": 5}
    idle, read = list(given) if method == "online-dpo" else list(given)[::-1]
    with pytest.warns(MultirefNotice) as said:
        train(world().task, method_named(method), Plan(labels=[4], **(QUICK | given)))
    found = " ".join(str(each.message) for each in said)
    assert f"{idle}: {given[idle]} has no effect" in found and f"{read}:" not in found


@pytest.mark.parametrize(
    ("changed", "name"), [({"seed": 1}, "seed"), ({"labels": [8, 16]}, "labels"), ({}, "method"), ({"beta": 2.0}, "beta")]
)
def test_a_state_of_another_run_is_refused_by_name(changed, name, tmp_path):
    train(world().task, method_named("xpo"), Plan(labels=[16], **QUICK), folder=tmp_path)
    train(world().task, method_named("xpo"), Plan(labels=[16, 32], **QUICK), folder=tmp_path)  # more labels are no other run
    task, given = world().task, dict(changed)
    task.beta = given.pop("beta", task.beta)
    with pytest.raises(StoreError, match=f"cannot be resumed .{name}: the checkpoint was written under"):
        plan = Plan(**{"labels": [16, 32, 48], **QUICK, **given})
        train(task, method_named("xpo" if changed else "online-dpo"), plan, folder=tmp_path)


class Stopped(Exception):
    """The machine went down."""


STOPPABLE = {
    "online-dpo": {},
    "xpo": {},
    "two-stage": {},
    "gshf": {},
    "sail": {"design": "PP"},
    "bilevel": {"objective": "likelihood", "estimator": "shared_rollouts"},
    "bilevel momentum": {"objective": "likelihood", "loop": "momentum"},
    "bilevel debiased": {"objective": "debiased", "estimator": "conjugate_gradient"},
    "bilevel newton": {"objective": "stop_gradient", "outer": "newton"},
}


@pytest.mark.parametrize("name", STOPPABLE)
def test_a_run_that_was_stopped_goes_on_exactly(name, tmp_path):
    """Killed in the middle of its third round, then run again: parameters to the bit and measurements as if nothing had
    happened."""
    plan = Plan(labels=[16, 32, 48, 64], final_rate=0.5, optimizer="muon" if name == "gshf" else "adam", **QUICK)

    def method():
        return method_named(name.split()[0], **STOPPABLE[name])

    whole, history = train(world().task, method(), plan, folder=tmp_path / "whole")
    broken = world().task
    good, asked = broken.oracle, []

    def oracle(*given):
        asked.append(1)
        if len(asked) > 2 * (2 if "debiased" in name else 1):
            raise Stopped
        return good(*given)

    broken.oracle = oracle
    with pytest.raises(Stopped):
        train(broken, method(), plan, folder=tmp_path / "half")
    again, later = train(world().task, method(), plan, folder=tmp_path / "half")
    assert all(torch.equal(a, b) for a, b in zip(whole.policy.parameters(), again.policy.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(whole.reward.parameters(), again.reward.parameters()))
    assert [line["gap"] for line in history.lines] == [line["gap"] for line in later.lines]
    assert [line["labels"] for line in later.lines] == [0, 16, 32, 48, 64]


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
    state.load(tmp_path / "checkpoint-1", lambda rounds: {})
    assert (state.round, state.labels_used) == (1, 8)


@pytest.mark.parametrize("error", [LabelsLate, ConnectionError])
def test_after_an_error_a_trainer_stands_where_its_last_good_round_left_it(error):
    """Without a folder too, whatever an oracle raises: policy, reward, labels and generator are those of one round, so mending
    the oracle and going on loses nothing; and the new history begins where the trainer stands."""
    made, whole = world(), world()
    plan = Plan(labels=[16, 32], **QUICK)
    good, calls = made.task.oracle, []

    def late(*given):
        calls.append(1)
        if len(calls) == 2:
            raise error("not yet")
        return good(*given)

    made.task.oracle = late
    trainer = BilevelTrainer(made.task, plan, objective="likelihood")
    with pytest.raises(error):
        trainer.train()
    assert (trainer.state.round, trainer.state.labels_used) == (1, 16)
    assert trainer.train().series("labels")[0] == [16, 32]
    other = BilevelTrainer(whole.task, plan, objective="likelihood")
    other.train()
    assert torch.equal(trainer.reward.phi, other.reward.phi)


def test_a_reward_model_that_diverges_stops_the_run_and_leaves_the_round_before(tmp_path):
    made = world()
    train(made.task, Bilevel("stop_gradient"), Plan(labels=[16], **QUICK), folder=tmp_path)
    with pytest.raises(Diverged, match="last good state"):
        train(made.task, Bilevel("stop_gradient"), Plan(labels=[16, 32], reward_rate=1e7, **QUICK), folder=tmp_path / "wild")
    with pytest.raises(Diverged):
        state = State.begin(made.task, seed=0, learning_rate=1e-3, reward_rate=1e-3)
        state.reward.phi.data.fill_(torch.nan)
        Bilevel("stop_gradient").round(made.task, state, 16, Plan(labels=[16], **QUICK))
    state = State.begin(made.task, seed=0, learning_rate=1e-3, reward_rate=1e-3)
    state.load(tmp_path / "checkpoint-1", lambda rounds: {})
    assert state.round == 1


def test_a_damaged_state_is_refused(tmp_path):
    (tmp_path / "state.safetensors").write_bytes(b"no state")
    with pytest.raises(StoreError, match="delete it"):
        train(world().task, method_named("iterative"), Plan(labels=[8], **QUICK), folder=tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"sigma": 0.0},
        {"sigma": -1.0},
        {"momentum": 0.0},
        {"objective": "U4"},
        {"estimator": "E9"},
        {"loop": "triple"},
        {"pairs": 1},
        {"perturbed_steps": 0},
    ],
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
    with pytest.raises(ArgumentError, match="final_rate"):
        Plan(labels=[10], final_rate=0.0)
    with pytest.raises(ArgumentError, match="rollouts"):
        Plan(labels=[10], rollouts=1)
    with pytest.raises(ArgumentError, match="optimizer"):
        Plan(labels=[10], optimizer="sgd")
    with pytest.raises(ArgumentError, match="measure_at"):
        Plan(labels=[10, 20], measure_at=[20, 30])
    for name, least in (
        ("steps", 0),
        ("prompts", 0),
        ("batch", 0),
        ("reward_steps", 0),
        ("reward_batch", 0),
        ("learning_rate", -1),
    ):
        with pytest.raises(ArgumentError, match=name):
            Plan(labels=[10], **{name: least})


def test_the_smallest_plan_is_one_that_runs():
    """A batch of one pair: XPO's optimism looks at half of that, and at one completion at least."""
    train(world().task, method_named("xpo"), Plan(labels=[2], steps=1, prompts=1, rollouts=2, batch=1))
