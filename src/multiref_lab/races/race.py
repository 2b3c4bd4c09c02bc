"""Every online method on enumerable transformer worlds under one budget of labels,
as an experiment of the laboratory's engine.
"""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from multiref.errors import MultirefNotice
from multiref.training.iterative import (
    GSHF,
    SAIL,
    XPO,
    Bilevel,
    Iterative,
    Method,
    OfflineDPO,
    OnlineDPO,
    Plan,
    State,
    Task,
    TwoStage,
    improve,
    train,
)
from multiref_lab.experiment import Experiment
from multiref_lab.races.enumerable_world import PolicyKind, RewardKind, enumerable_world
from multiref_lab.toys import Size, TableOracle


@dataclass(frozen=True)
class KnownReward:
    """Labels that nobody needs to buy: the same policy steps on the hidden reward itself.

    What it leaves is the optimisation's share, not the labels'.
    """

    name: str = "known reward"

    def round(self, task: Task, state: State, labels: int, plan: Plan) -> dict[str, float]:
        if isinstance(task.oracle, TableOracle):
            improve(task, state, task.oracle.score, steps=plan.steps, prompts=plan.prompts, rollouts=plan.rollouts)
        state.labels_used += labels
        return {}


@dataclass(frozen=True)
class Entry:
    """A method with its classes: of the policy, a transformer or log-linear in the reward's features, and of the reward."""

    method: Method
    policy: PolicyKind = "transformer"
    reward_model: RewardKind = "features"

    @property
    def name(self) -> str:
        """As the table calls it."""
        known = "" if self.policy == "transformer" else ", log-linear policy"
        return f"{self.method.name}{known}" + ("" if self.reward_model == "features" else ", transformer reward")


AUDIT: tuple[Entry, ...] = tuple(
    Entry(m)
    for m in (
        Bilevel("stop_gradient"),
        Bilevel("likelihood", "covariance"),
        Bilevel("win_rate", "covariance"),
        Bilevel("debiased", "covariance"),
    )
)
_DIRECT = (OnlineDPO(), XPO(), OfflineDPO(), SAIL("PR"), SAIL("PP"), SAIL("DP"))
CONTESTANTS: tuple[Entry, ...] = (
    Entry(KnownReward()),
    *AUDIT,
    Entry(Bilevel("stop_gradient", outer="newton")),
    *(Entry(m) for m in (Iterative(), GSHF(), TwoStage(), *_DIRECT)),
    Entry(Iterative(), reward_model="transformer"),
    *(
        Entry(m, policy="log-linear")
        for m in (*_DIRECT, Iterative(), GSHF(), TwoStage(), Bilevel("stop_gradient", outer="newton"))
    ),
    Entry(Bilevel("stop_gradient", loop="single")),
    Entry(Bilevel("stop_gradient", loop="momentum")),
    Entry(Bilevel("likelihood", "shared_rollouts", perturbed_steps=3)),
    Entry(Bilevel("likelihood", "two_policies", sigma=0.3, perturbed_steps=3)),
    Entry(Bilevel("likelihood", "conjugate_gradient")),
)
_ROUNDS = 80


def plan_for(entry: Entry, labels: int, work: int) -> Plan:
    """80 rounds of equally many labels and `work` policy steps in all, for every method.

    Rates and optimisers were chosen on world 0 at β = ½; what is reported is on others.
    A transformer that follows a reward takes Muon's steps on many rollouts:
    under Adam on few it, not the labels, is what limits every method. One
    that is fitted to labels takes a fraction of the rate: at ten times as much online DPO overfits, with either optimiser.
    """
    method = entry.method
    counts = [round(labels * (k + 1) / _ROUNDS) for k in range(_ROUNDS)]
    marks = sorted({counts[k] for k in (1, 3, 7, 15, 23, 31, 47, 63, 79)})
    on_reward = isinstance(method, KnownReward | Bilevel | Iterative | GSHF | TwoStage)
    follows = on_reward and entry.policy == "transformer"
    steps = max(1, work // _ROUNDS)
    plan = Plan(
        labels=counts,
        steps=steps,
        prompts=64,
        rollouts=16,
        batch=64,
        reward_steps=20,
        reward_batch=16_384,
        optimizer="muon" if follows else "adam",
        learning_rate=2e-2 if follows else 1e-2 if entry.policy == "log-linear" else 1e-4,
        final_rate=0.02,
        reward_rate=0.04 if isinstance(method, Bilevel) else 0.05,
        reward_decay=15.0,
        measure_at=marks,
    )
    if entry.reward_model == "transformer":  # fitted as the policies of DPO are
        plan = replace(plan, reward_steps=steps, reward_batch=64, reward_rate=2e-4)
    if isinstance(method, Bilevel) and method.loop != "double":  # one policy step an outer step: more and smaller outer steps
        many = min(8 * _ROUNDS, labels // 8)
        counts = [round(labels * (k + 1) / many) for k in range(many)]
        plan = replace(
            plan,
            labels=counts,
            reward_decay=80.0,
            reward_rate=0.03,
            measure_at=[next(c for c in counts if c >= m) for m in marks],
        )
    return plan


@dataclass(frozen=True)
class Start:
    """One contestant's runs in one setting: a cell of the race."""

    contestant: str
    world: int
    beta: float
    size: Size
    seeds: int
    labels: int
    work: int

    @property
    def setting(self) -> str:
        """The contestants of one setting are compared."""
        return f"beta={self.beta:g} seen={self.size.seen or self.size.dimension} world={self.world}"

    @property
    def name(self) -> str:
        return f"{self.setting} {self.contestant}"


def race(folder: str | Path, starts: list[Start]) -> Experiment[Start, list[dict[str, Any]]]:
    """The race's records are in the folder; what is there is not run again."""
    return Experiment(folder, starts, run_start)


def run_start(start: Start) -> list[dict[str, Any]]:
    """The measured lines of a history, with processor seconds summed up to them and numbers cut to what they mean."""
    (entry,) = (entry for entry in CONTESTANTS if entry.name == start.contestant)
    made = enumerable_world(
        start.seeds,
        start.size,
        beta=start.beta,
        world_seed=start.world,
        policy=entry.policy,
        reward_model=entry.reward_model,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MultirefNotice)  # one plan for all methods, of which each reads its part
        _, history = train(made.task, entry.method, plan_for(entry, start.labels, start.work))
    kept, processor = [], 0.0
    for line in history.lines:
        processor += line.pop("processor", 0.0)
        if "gap" in line:
            short = {
                key: [float(f"{v:.5g}") for v in value] if isinstance(value, list) else value for key, value in line.items()
            }
            kept.append({**short, "processor": round(processor, 2)})
    return kept
