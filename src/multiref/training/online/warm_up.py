"""A first part of a distillation under another penalty, at states of given texts:
for a student that is far from its teachers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from multiref.errors import ArgumentError
from multiref.references.rollouts import Rollout
from multiref.training.checks import check_choice

__all__ = ["Sampler", "WarmUp"]

Sampler = Callable[[Any, Any, Sequence[Any]], list[Rollout]]


@dataclass(frozen=True)
class WarmUp:
    """The first `share` of the steps at states that `sampler` gives (`TextStates(texts, share=1.0, …)`), under `penalty`.

    Where a run ends is decided by what follows; this is where it starts from.
    At states of a text the student's own mistakes do not compound.

    Args:
        share: of the steps, from 0 to 1.
        penalty: "per_token_forward_kl", KL(ĝ_t‖π_t) to the pool ĝ_t renormalised at each state, or "per_token_reverse_kl".
            Others look at how likely the policy was to sample what it sees, and these states are not its samples.
    """

    share: float
    sampler: Sampler
    penalty: str = "per_token_forward_kl"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ArgumentError(f"warm_up: share: expected a number from 0 to 1, found {self.share}.")
        check_choice("warm_up: penalty", self.penalty, ("per_token_forward_kl", "per_token_reverse_kl"))

    def covers(self, step: int, steps: int) -> bool:
        """Whether this step, from 0, is one of the warm-up."""
        return step < round(self.share * steps)

    def describe(self, steps: int) -> str:
        return f"Warm-up: {round(self.share * steps)} of {steps} steps under {self.penalty}, at states of given texts."
