"""What an outer step drew and had labelled, as the estimators of its gradient look at it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from multiref.training.iterative.task import RewardModel

__all__ = ["LabelledUnits"]


@dataclass(frozen=True)
class LabelledUnits:
    """m units a prompt.

    Attributes:
        prompts: [B].
        completions: [*S, B, m·n, L], the policy's own completions; n of them a unit (2 for pairs, 1 against the comparator).
        answers: [*S, B·m], 1 where the first of a pair was preferred; again: a second label of the same pairs ("debiased").
        utility: [*S, B, m], each unit's unbiased estimate of the upper objective.
        loss: [*S, B·m], the cross-entropy of the labels, for the log.
    """

    prompts: Tensor
    completions: Tensor
    answers: Tensor
    again: Tensor | None
    utility: Tensor
    loss: Tensor

    def per_unit(self, values: Tensor) -> Tensor:
        """[*S, B, m·n] → [*S, B, m]: summed over the completions of a unit."""
        units: Tensor = values.unflatten(-1, (self.utility.shape[-1], -1))
        return units.sum(-1)

    def margin(self, reward: RewardModel) -> Tensor:
        """[*S, B·m]: predicted reward of the first of each pair less that of the second."""
        return pair_margin(reward, self.prompts, self.completions)


def pair_margin(reward: RewardModel, prompts: Tensor, completions: Tensor) -> Tensor:
    """[B], [*S, B, 2m, L] → [*S, B·m]: predicted reward of the first of each pair less that of the second."""
    first, second = reward(prompts, completions).unflatten(-1, (-1, 2)).unbind(-1)
    margin: Tensor = first - second
    return margin.flatten(-2)
