"""Methods without a reward model: the policy itself is fitted to labelled pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from multiref.training.iterative.loop import Plan
from multiref.training.iterative.state import State
from multiref.training.iterative.steps import ask, buy, preference_step, some_prompts
from multiref.training.iterative.task import Task

__all__ = ["XPO", "OfflineDPO", "OnlineDPO"]


@dataclass(frozen=True)
class OfflineDPO:
    """DPO under K references on pairs of the starting policy: all labels could have been bought beforehand."""

    name: str = "offline DPO"

    def round(self, task: Task, state: State, labels: int, plan: Plan) -> dict[str, float]:
        buy(task, state, labels, state.start)
        return {"loss": _fit(task, state, plan)}


@dataclass(frozen=True)
class OnlineDPO:
    """DPO on pairs of the current policy, all labels so far kept."""

    name: str = "online DPO"

    def round(self, task: Task, state: State, labels: int, plan: Plan) -> dict[str, float]:
        buy(task, state, labels, state.policy)
        return {"loss": _fit(task, state, plan)}


def _fit(task: Task, state: State, plan: Plan) -> float:
    return [preference_step(task, state, *state.labels.batch(plan.batch, state.generator)) for _ in range(plan.steps)][-1]


@dataclass(frozen=True)
class XPO:
    """Pairs of the policy against the starting policy; DPO plus α E log π(completion of the starting policy): optimism.

    Reference: arXiv 2405.21046 (formula RECALLED); α ≥ 0 is `optimism`.
    """

    optimism: float = 1e-3
    name: str = "XPO"

    def round(self, task: Task, state: State, labels: int, plan: Plan) -> dict[str, float]:
        x = some_prompts(task, labels, state.generator)
        pairs = torch.cat((state.policy.sample(x, 1, state.generator), state.start.sample(x, 1, state.generator)), -2)
        ask(task, state, x, pairs)
        last = 0.0
        for _ in range(plan.steps):
            batch = state.labels.batch(plan.batch, state.generator)
            seen = some_prompts(task, plan.batch // 2, state.generator)
            drawn = state.start.sample(seen, 1, state.generator)
            extra = self.optimism * state.policy.logps(seen, drawn).mean((-1, -2))
            last = preference_step(task, state, *batch, extra)
        return {"loss": last}
