"""Labelled pairs, as bought: a growing set that methods learn from;
and what an outer step drew and had labelled, as the estimators of its gradient look at it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from multiref.errors import ArgumentError, DataError
from multiref.training.iterative.task import RewardModel


def check_answers(answers: Tensor) -> Tensor:
    """Refuse an oracle's answer that is neither side.

    Raises:
        DataError: NaN, or anything but 0 and 1.
    """
    wrong = ~((answers == 0) | (answers == 1))
    if bool(wrong.any()):
        found = answers[wrong][0].item()
        raise DataError(
            f"oracle: {int(wrong.sum())} of {answers.numel()} answers are neither side, the first {found!r}; expected 1 "
            "(first preferred) or 0 (second). Nothing of this round was learnt from; mend the oracle and run again"
        )
    return answers


@dataclass
class Labels:
    """prompts [N], completions [*S, N, 2, L] with the preferred one first."""

    prompts: Tensor | None = None
    completions: Tensor | None = None
    latest: int = 0

    def __len__(self) -> int:
        return 0 if self.prompts is None else len(self.prompts)

    def add(self, prompts: Tensor, pairs: Tensor, answers: Tensor) -> None:
        """[M], [*S, M, 2, L], [*S, M] → kept, winner first. `latest` is where this batch begins."""
        first = check_answers(answers).bool()[..., None, None]
        ordered = torch.where(first, pairs, pairs.flip(-2))
        self.latest = len(self)
        if self.prompts is None or self.completions is None:
            self.prompts, self.completions = prompts, ordered
        else:
            self.prompts = torch.cat((self.prompts, prompts))
            self.completions = torch.cat((self.completions, ordered), dim=-3)

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Prompts [M] and completions [*S, M, 2, L] at `index`."""
        if self.prompts is None or self.completions is None:
            raise ArgumentError("labels: found none, expected some; buy labels before learning from them")
        return self.prompts[index], self.completions.index_select(-3, index)

    def batch(self, size: int, generator: torch.Generator, *, since: int = 0) -> tuple[Tensor, Tensor]:
        """A random batch of those from `since` on; all of them where they fit."""
        count = len(self) - since
        return self.take(since + (torch.arange(count) if size >= count else torch.randint(count, (size,), generator=generator)))


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


def pair_margin(reward: RewardModel, prompts: Tensor, completions: Tensor) -> Tensor:
    """[B], [*S, B, 2m, L] → [*S, B·m]: predicted reward of the first of each pair less that of the second; of a pairwise model
    the log-odds that it gives a pair."""
    if hasattr(reward, "margin"):
        odds: Tensor = reward.margin(prompts, completions)
        return odds
    first, second = reward(prompts, completions).unflatten(-1, (-1, 2)).unbind(-1)
    margin: Tensor = first - second
    return margin.flatten(-2)
