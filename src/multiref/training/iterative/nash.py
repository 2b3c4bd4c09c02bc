"""Learning a preference game: a pairwise reward fitted to all labels so far, and a policy improved on its own win rates."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from multiref.errors import ArgumentError
from multiref.training.checks import check_choice
from multiref.training.iterative.loop import Plan
from multiref.training.iterative.state import State
from multiref.training.iterative.steps import buy, learn
from multiref.training.iterative.task import Task

Features = Callable[[Tensor, Tensor], Tensor]


class PairwiseRewardModel(nn.Module):
    """P(y ≻ y') = σ(s), s(x, y, y') = φ(x, y)ᵀ Θ φ(x, y'), Θ skew: preferences with cycles, which no reward explains.

    Called as a reward it gives each completion's share of wins in its group, (½ + Σ_{j≠i} P(y_i ≻ y_j))/n, as `WinRate` does.

    Args:
        features: (prompts [B], completions [*S, B, n, L]) → [*S, B, n, d], frozen; those of a linear reward.
        shape: [*S, d] of them.

    Reference: generalised bilinear preferences, arXiv 2602.23116 (FOUND).
    """

    pairwise = True  # no reward of one completion: what compares it with one leaves it out

    def __init__(self, features: Features, shape: torch.Size) -> None:
        super().__init__()
        self.features = features
        self.theta = nn.Parameter(torch.zeros(*shape, shape[-1]))

    def log_odds(self, first: Tensor, second: Tensor) -> Tensor:
        """[*S, B, n, d], [*S, B, m, d] → [*S, B, n, m]: s of every pair."""
        skew = (self.theta - self.theta.mT) / self.theta.shape[-1]
        return first @ skew.unsqueeze(-3) @ second.mT

    def margin(self, prompts: Tensor, completions: Tensor) -> Tensor:
        """[M], [*S, M, 2, L] → [*S, M]: log-odds of the first of each pair."""
        f = self.features(prompts, completions).to(self.theta)
        return self.log_odds(f[..., :1, :], f[..., 1:, :])[..., 0, 0]

    def forward(self, prompts: Tensor, completions: Tensor) -> Tensor:
        """[B], [*S, B, n, L] → [*S, B, n]."""
        f = self.features(prompts, completions).to(self.theta)
        return torch.sigmoid(self.log_odds(f, f)).mean(-1)


@dataclass(frozen=True)
class Nash:
    """Preferences that may cycle: maximum likelihood of a `PairwiseRewardModel` on all labels, and steps on its win rates,
    under the task's regularizer. Ends near `exact.nash` of the learnt preference.

    Args:
        design: "own": both completions of a pair from the policy. "greedy": one from the policy, one from where training
            started, which stands for the pool: its coverage does not shrink with the policy.

    Reference: arXiv 2602.23116, greedy sampling (FOUND for one reference); K references and own pairs DERIVED.
    """

    design: Literal["greedy", "own"] = "own"

    def __post_init__(self) -> None:
        check_choice("design", self.design, ("greedy", "own"))

    @property
    def name(self) -> str:
        """As tables and races list it."""
        return f"Nash, {self.design} pairs"

    def prepare(self, task: Task) -> Task:
        """The task with a pairwise reward on the features of its own.

        Raises:
            ArgumentError: a task without a reward that is linear in features.
        """
        if isinstance(task.reward_model, PairwiseRewardModel):
            return task
        features, phi = (getattr(task.reward_model, name, None) for name in ("features", "phi"))
        if features is None or phi is None:
            raise ArgumentError(
                f"{self.name}: expected a reward model that is linear in `features`, found {task.reward_model!r}."
            )
        return replace(task, reward_model=PairwiseRewardModel(features, phi.shape))

    def round(self, task: Task, state: State, labels: int, plan: Plan) -> dict[str, float]:
        """Buys `labels` labels, learns, returns what to log."""
        if not isinstance(reward := state.learner()[0], PairwiseRewardModel):
            raise ArgumentError(f"{self.name}: found a state with {type(reward).__name__}; begin with `prepare(task)`.")
        buy(task, state, labels, state.policy, None if self.design == "own" else state.start)
        return learn(task, state, plan)
