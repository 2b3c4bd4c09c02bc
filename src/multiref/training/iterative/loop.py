"""The one loop: rounds of labels, learning, measuring; a log line a round; a state that resumes exactly."""

import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from multiref._files import as_path, write_whole
from multiref._progress import tell
from multiref.errors import ArgumentError, StoreError
from multiref.training.checks import check_at_least, check_choice, check_seed, check_whole, say_idle, stated
from multiref.training.iterative.state import State
from multiref.training.iterative.task import Task
from multiref.training.lost_updates import LostUpdates
from multiref.training.online.rewards import judged_by
from multiref.training.sums import newest_whole

LEARNS = ("steps", "prompts", "rollouts", "reward_steps", "reward_rate", "reward_batch")  # of the plan, to fit a reward
FITS = ("steps", "batch")  # to fit the policy to labels


class Method(Protocol):
    """Which pairs to have labelled, and how to learn from them. It reads `LEARNS` of the plan, or what its `reads` says."""

    @property
    def name(self) -> str:
        """As reports call it."""

    def round(self, task: Task, state: State, labels: int, plan: "Plan") -> dict[str, float]:
        """Buys `labels` labels, learns, returns what to log."""


@dataclass(frozen=True)
class Plan:
    """labels: cumulative label counts at the ends of rounds. steps: policy steps a round.
    prompts × rollouts: size of a policy step.

    optimizer: the policy's; muon needs half of Adam's steps or fewer where a transformer follows a reward
    (docs/which-online-algorithm.md), and a policy with hidden matrices.
    The policy's rate falls linearly over the rounds, from learning_rate to final_rate times that.
    An outer step k of a bilevel method takes the reward rate reward_rate/(1 + k/reward_decay);
    the other methods fit the reward by reward_steps steps on batches of reward_batch labels.
    """

    labels: Sequence[int]
    steps: int = 60
    prompts: int = 64
    rollouts: int = 4
    batch: int = 128
    reward_steps: int = 100
    optimizer: Literal["adam", "muon"] = "adam"
    learning_rate: float = 3e-3
    reward_rate: float = 3e-2
    reward_decay: float = 10.0
    reward_batch: int = 1024
    final_rate: float = 1.0
    seed: int = 0
    measure_at: Sequence[int] | None = None

    def __post_init__(self) -> None:
        counts = list(self.labels)
        if not counts or counts[0] < 1 or any(b <= a for a, b in itertools.pairwise(counts)):
            raise ArgumentError(f"labels: found {counts[:5]}, expected growing cumulative counts such as [100, 200, 400]")
        if odd := [count for count in self.measure_at or () if count not in counts]:
            raise ArgumentError(f"measure_at: found {odd[:5]}, expected some of the labels at which rounds end, {counts[:5]} …")
        check_seed(self.seed)
        check_choice("optimizer", self.optimizer, ("adam", "muon"))
        check_whole(self, 1, "steps", "prompts", "batch", "reward_steps", "reward_batch")
        check_whole(self, 2, "rollouts")  # for a leave-one-out baseline
        check_at_least(self, 0, "learning_rate", "reward_rate", "reward_decay")
        if not 0 < self.final_rate <= 1 or not self.reward_decay > 0:
            raise ArgumentError(
                f"final_rate, reward_decay: found {self.final_rate} and {self.reward_decay}, expected a share of learning_rate "
                "in (0, 1], and more than 0 steps"
            )


@dataclass
class History:
    """One line a round: labels, wall seconds, what the method logged, and what the task measured,
    seeds on the axis of each list."""

    method: str
    lines: list[dict[str, Any]] = field(default_factory=list)

    def series(self, name: str) -> tuple[list[float], list[list[float]]]:
        """Labels, and the measurement at each [rounds, S]."""
        kept = [line for line in self.lines if name in line]
        return [line["labels"] for line in kept], [line[name] for line in kept]


def train(
    task: Task,
    method: Method,
    plan: Plan,
    *,
    folder: str | Path | None = None,
    state: State | None = None,
    listener: Callable[[dict[str, Any]], None] | None = None,
) -> tuple[State, History]:
    """Run a method on a task. With a folder: `checkpoint-<round>` after every round (in one step, with sums),
    `history.jsonl`; run again to resume from the newest that is whole. `listener` gets each new line.

    A round that fails (an oracle that answers neither side or late, a model that diverges) leaves the state of the round
    before, in `state` and in the folder.

    Raises:
        StoreError: a folder whose state is damaged, or of another task, method, β, seed, optimizer or label counts.
    """
    if state is None and hasattr(method, "prepare"):  # `Nash` learns a pairwise reward
        task = method.prepare(task)
    say_unread(plan, method)
    state = state or begin(task, plan)
    history, where = History(method.name), None if folder is None else as_path(folder)
    if where is not None:
        where.mkdir(parents=True, exist_ok=True)
        if (where / "state.safetensors").exists():
            raise StoreError(f"{where / 'state.safetensors'} is of an earlier version, or no state; delete it to start again")
        path, _ = newest_whole(where)
        if path is not None:
            history.lines = state.load(path, lambda done: _settings(task, method, plan, done))
    if not history.lines:
        history.lines.append({"labels": state.labels_used, "wall": state.wall, **_measured(task, state)})
    total = list(plan.labels)
    model: Any = getattr(state.policy, "model", None)  # of a language model; a reward that is still zero may give no gradient
    watched = state.round == 0 and isinstance(model, torch.nn.Module)
    updates = LostUpdates(model, state.optimizer, waits=True) if watched else None
    while state.round < len(total):
        tell("labels", state.labels_used, total[-1])
        began, busy, good = time.perf_counter(), time.process_time(), state.kept()
        for group in state.optimizer.param_groups:
            group["lr"] = plan.learning_rate * (1 - (1 - plan.final_rate) * state.round / max(1, len(total) - 1))
        bought = total[state.round] - (total[state.round - 1] if state.round else 0)
        try:
            logged = method.round(task, state, bought, plan)
            state.check_finite()
        except BaseException:  # of whatever kind: an oracle is other people's code
            state.restore(good)
            raise
        if updates is not None:
            updates.conclude(last=state.round + 1 == len(total))
        state.round += 1
        state.wall += time.perf_counter() - began
        line = {"labels": state.labels_used, "wall": state.wall, "processor": time.process_time() - busy, **logged}
        if plan.measure_at is None or total[state.round - 1] in plan.measure_at:
            line |= _measured(task, state)
        history.lines.append(line)
        if where is not None:
            text = "".join(json.dumps(each) + "\n" for each in history.lines)
            write_whole(where / "history.jsonl", text)
            state.save(where, history.lines, _settings(task, method, plan, state.round))
        if listener is not None:
            listener(line)
    tell("labels", total[-1], total[-1])
    return state, history


def say_unread(plan: Plan, method: Method) -> None:
    """A notice for every number of the plan that the method does not read."""
    reads = getattr(method, "reads", LEARNS)
    say_idle(
        plan, [(name, name not in reads, f"{method.name} does not read it") for name in (*LEARNS, "batch", "reward_decay")]
    )


def _settings(task: Task, method: Method, plan: Plan, rounds: int) -> dict[str, Any]:
    """What a run that goes on after so many rounds must share with the one that made them."""
    return {
        "method": stated(method),
        "regularizer": stated(task.regularizer),
        **{"beta": task.beta, "prompts": task.prompts, "seed": plan.seed, "optimizer": plan.optimizer},
        "labels": list(plan.labels)[:rounds],
        "epsilon": getattr(task.oracle, "epsilon", None),
        "judge": judged_by(task.oracle),
        **task.settings,
    }


def begin(task: Task, plan: Plan) -> State:
    """Where a run starts."""
    return State.begin(
        task, seed=plan.seed, learning_rate=plan.learning_rate, reward_rate=plan.reward_rate, optimizer=plan.optimizer
    )


@torch.no_grad()
def _measured(task: Task, state: State) -> dict[str, Any]:
    return {} if task.measure is None else {name: value.reshape(-1).tolist() for name, value in task.measure(state).items()}
