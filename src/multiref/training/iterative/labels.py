"""Labelled pairs, as bought: a growing set that methods learn from."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from multiref.errors import ArgumentError, DataError

__all__ = ["Labels", "check_answers"]


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
    latest: int = field(default=0)

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
        if size >= len(self) - since:
            return self.take(torch.arange(since, len(self)))
        return self.take(since + torch.randint(len(self) - since, (min(size, len(self) - since),), generator=generator))
