"""Methods with a reward model, fitted to all labels so far, and a policy improved on it:
iterated RLHF, GSHF, two-stage mixed sampling."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from multiref.training.checks import check_choice
from multiref.training.iterative.loop import Plan
from multiref.training.iterative.state import State
from multiref.training.iterative.steps import ask, buy, fit_reward, improve, some_prompts
from multiref.training.iterative.task import Task


def _learn(task: Task, state: State, plan: Plan) -> dict[str, float]:
    reward, _ = state.learner()
    loss = fit_reward(task, state, steps=plan.reward_steps, batch=plan.reward_batch, rate=plan.reward_rate)
    improve(task, state, reward, steps=plan.steps, prompts=plan.prompts, rollouts=plan.rollouts)
    return {"reward loss": loss}


@dataclass(frozen=True)
class Iterative:
    """Pairs of the current policy; maximum likelihood on all labels; improve: the stop-gradient objective with memory."""

    name: str = "iterative RLHF"

    def round(self, task: Task, state: State, labels: int, plan: Plan) -> dict[str, float]:
        """Buys `labels` labels, learns, returns what to log."""
        buy(task, state, labels, state.policy)
        return _learn(task, state, plan)


@dataclass(frozen=True)
class GSHF:
    """Main agent against an enhancer: of `candidates` rollouts the opponent is the one about whose margin the labels so far say
    least.

    With a linear reward Γ = ‖f(y) − f(y')‖ in the inverse of the pairs' second moments;
    other rewards fall back on the largest predicted margin.
    Reference: arXiv 2312.11456, main agent and enhancer (form FOUND, the choice among rollouts DERIVED).
    """

    candidates: int = 4
    ridge: float = 1.0
    name: str = "GSHF"

    def round(self, task: Task, state: State, labels: int, plan: Plan) -> dict[str, float]:
        """Buys `labels` labels, learns, returns what to log."""
        x = some_prompts(task, labels, state.generator)
        y = state.policy.sample(x, self.candidates, state.generator)
        far = self._uncertainty(state, x, y)[..., 1:].argmax(-1) + 1  # [*S, M]
        picked = y.gather(-2, far[..., None, None].expand(*far.shape, 1, y.shape[-1]))
        ask(task, state, x, torch.cat((y[..., :1, :], picked), -2))
        return _learn(task, state, plan)

    def _uncertainty(self, state: State, x: Tensor, y: Tensor) -> Tensor:
        """[*S, M, n]: of each candidate relative to the first."""
        model, _ = state.learner()
        features = getattr(model, "features", None)
        if features is None:
            with torch.no_grad():
                reward = model(x, y)
            return (reward - reward[..., :1]).abs()
        move = features(x, y) - features(x, y)[..., :1, :]
        dimension = move.shape[-1]
        moments: Tensor = self.ridge * torch.eye(dimension).expand(*move.shape[:-3], dimension, dimension)
        if len(state.labels):
            past = features(*state.labels.take(torch.arange(len(state.labels))))
            seen = past[..., 0, :] - past[..., 1, :]
            moments = moments + torch.einsum("...md,...me->...de", seen, seen)
        return torch.einsum("...mnd,...de,...mne->...mn", move, torch.linalg.inv(moments), move)


@dataclass(frozen=True)
class TwoStage:
    """A quarter of the labels on pairs of the starting policy, then a policy fixed, then the rest on its pairs;
    the reward fitted to all.

    pairs: of the second stage. "own": both completions from the fixed policy. "mixed": one from it, one from the starting
    policy, which stands for the pool. Neither dominates: own pairs need no coverage where the fixed policy is near the
    optimum, mixed ones still see what it left. Where the start covers well, one stage is as good
    (docs/which-online-algorithm.md).

    Reference: arXiv 2411.04625, two-stage mixed-policy sampling (FOUND).
    """

    first_stage: float = 0.25
    pairs: Literal["own", "mixed"] = "own"
    name: str = "two-stage mixed sampling"

    def __post_init__(self) -> None:
        check_choice("pairs", self.pairs, ("own", "mixed"))

    def round(self, task: Task, state: State, labels: int, plan: Plan) -> dict[str, float]:
        """Buys `labels` labels, learns, returns what to log."""
        first = state.labels_used < self.first_stage * plan.labels[-1]
        if not first and state.middle is None:
            state.middle = state.policy.copy()
        if first or state.middle is None:
            buy(task, state, labels, state.start)
        elif self.pairs == "own":
            buy(task, state, labels, state.middle)
        else:
            x = some_prompts(task, labels, state.generator)
            ask(task, state, x, torch.cat([each.sample(x, 1, state.generator) for each in (state.middle, state.start)], -2))
        return _learn(task, state, plan)
