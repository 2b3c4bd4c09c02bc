"""Methods without a reward model: the policy itself is fitted to labelled pairs."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from multiref.errors import ArgumentError
from multiref.training.checks import check_choice
from multiref.training.iterative.loop import Plan
from multiref.training.iterative.state import State
from multiref.training.iterative.steps import ask, buy, preference_step, refuse_private, some_prompts
from multiref.training.iterative.task import Task
from multiref.training.online.methods import leave_one_out


@dataclass(frozen=True)
class OfflineDPO:
    """DPO under K references on pairs of the starting policy: all labels could have been bought beforehand."""

    name: str = "offline DPO"

    def round(self, task: Task, state: State, labels: int, plan: Plan) -> dict[str, float]:
        """Buys `labels` labels, learns, returns what to log."""
        buy(task, state, labels, state.start)
        return {"loss": _fit(task, state, plan)}


@dataclass(frozen=True)
class OnlineDPO:
    """DPO on pairs of the current policy, all labels so far kept."""

    name: str = "online DPO"

    def round(self, task: Task, state: State, labels: int, plan: Plan) -> dict[str, float]:
        """Buys `labels` labels, learns, returns what to log."""
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
        """Buys `labels` labels, learns, returns what to log."""
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


@dataclass(frozen=True)
class SAIL:
    r"""The two levels collapsed into one by reading the reward off the policy, and the extra gradient that this leaves:
    DPO on labelled pairs, mixed with self-play pairs and their score terms, under K references.

        loss = (1 − p) DPO(labelled) + p [ DPO(fresh) − γ F (∇ log π(y_w) + ∇ log π(y_l)) ],   F = log σ(reward margin)

    design DP: responses of the data set, the policy as judge; PP: responses of the policy, the policy as judge; PR:
    responses of the policy, the oracle as judge (all its labels are bought online).
    With the policy as judge the label's own score is added.

    Reference: arXiv 2406.15567; names FOUND, equations DERIVED or RECALLED (docs/theory.md 9).
    The objective inherits the likelihood's inconsistency.
    """

    design: Literal["DP", "PP", "PR"] = "PR"
    mixture: float = 0.3
    extra: float = 0.1

    def __post_init__(self) -> None:
        check_choice("design", self.design, ("DP", "PP", "PR"))
        if not 0 <= self.mixture <= 1:
            raise ArgumentError(f"mixture: found {self.mixture}, expected a share in [0, 1]")

    @property
    def name(self) -> str:
        """As tables and races list it."""
        return f"SAIL-{self.design}"

    def round(self, task: Task, state: State, labels: int, plan: Plan) -> dict[str, float]:
        """Buys `labels` labels, learns, returns what to log."""
        refuse_private(task, self.name)
        buy(task, state, labels, state.policy if self.design == "PR" else state.start)
        last = 0.0
        for _ in range(plan.steps):
            last = preference_step(
                task, state, *state.labels.batch(plan.batch, state.generator), self._online(task, state, plan)
            )
        return {"loss": last}

    def _online(self, task: Task, state: State, plan: Plan) -> Tensor:
        """[*S]: what is added to the DPO loss on labelled pairs, p/(1 − p) of it."""
        size = max(2, plan.batch // 2)
        if self.design == "PR":  # labelled already, by the oracle, at the policy of this round
            x, y = state.labels.batch(size, state.generator, since=state.labels.latest)
        elif self.design == "DP":
            x, y = state.labels.batch(size, state.generator)
        else:
            x = some_prompts(task, size, state.generator)
            y = state.policy.sample(x, 2, state.generator)
        logps = state.policy.logps(x, y)
        with torch.no_grad():
            references = task.ref_logps(x, y)
        reward = task.regularizer.implicit_reward(logps, references, beta=task.beta)
        margin = reward[..., 0] - reward[..., 1]
        sign = torch.ones_like(margin)
        if self.design != "PR":
            chance = torch.rand(margin.shape, generator=state.generator)
            sign = torch.where(chance < torch.sigmoid(margin.detach()), 1.0, -1.0)
        fit = logsigmoid(sign * margin)
        centred = leave_one_out(fit.detach(), axis=-1)
        score = centred * (logps.sum(-1) if self.design != "DP" else torch.zeros_like(fit))
        if self.design != "PR":
            score = score + centred * logsigmoid(sign * margin)  # the score of the label that the policy itself gave
        return self.mixture / max(1 - self.mixture, 1e-6) * -(fit + self.extra * score).mean(-1)
