"""Who answers which of two completions is better: a function, or a reward as judge."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from multiref.errors import DataError, MultirefError


class LabelsLate(MultirefError, TimeoutError):
    """Labels did not come within the time that was given. Nothing is lost: run again when they are there."""


class FunctionOracle:
    """A function (prompt texts, first texts, second texts) → which is preferred:
    1 first, 0 second, or a probability strictly between.

    Args:
        decode: (prompt numbers, completions) → prompt texts, completion texts.

    Raises, when asked:
        DataError: an answer that is no number in [0, 1], NaN, or too few of them, naming the pair.
        LabelsLate: the function raised TimeoutError.
    """

    def __init__(
        self, function: Callable[[Sequence[str], Sequence[str], Sequence[str]], Sequence[float]], decode: Callable[..., Any]
    ):
        self.function, self.decode = function, decode

    def __call__(self, prompts: Tensor, first: Tensor, second: Tensor, generator: torch.Generator) -> Tensor:
        texts, one = self.decode(prompts, first)
        _, two = self.decode(prompts, second)
        try:
            answers = list(self.function(texts, one, two))
        except TimeoutError as error:
            raise LabelsLate(
                f"oracle: no answer to {len(texts)} pairs in time ({error}); the state of the round before is kept, run again"
            ) from error
        if len(answers) != len(texts):
            raise DataError(f"oracle: {len(answers)} answers to {len(texts)} pairs; expected one each")
        for place, answer in enumerate(answers):
            if not isinstance(answer, int | float) or not math.isfinite(answer) or not 0 <= answer <= 1:
                raise DataError(
                    f"oracle: pair {place} is answered {answer!r}; expected 1 (first), 0 (second) or a probability between; "
                    "it preferred neither side"
                )
        return torch.bernoulli(torch.tensor(answers, dtype=torch.float64), generator=generator).reshape(first.shape[:-1])


class RewardOracle(FunctionOracle):
    """A reward as judge: reward(prompts, completions) → numbers; labels by Bradley–Terry at `temperature`."""

    def __init__(
        self,
        reward: Callable[[Sequence[str], Sequence[str]], Sequence[float]],
        decode: Callable[..., Any],
        *,
        temperature: float = 1.0,
    ):
        def judge(prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
            margins = [a - b for a, b in zip(reward(prompts, first), reward(prompts, second), strict=True)]
            return [math.nan if math.isnan(m) else float(torch.sigmoid(torch.tensor(m / temperature))) for m in margins]

        super().__init__(judge, decode)
