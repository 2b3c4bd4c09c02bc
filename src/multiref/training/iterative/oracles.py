"""Who answers which of two completions is better: a function, or a reward as judge."""

import math
import secrets
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from multiref.errors import ArgumentError, DataError, MultirefError
from multiref.losses import check_epsilon, randomised_response
from multiref.training.iterative.labels import check_answers
from multiref.training.iterative.task import Oracle
from multiref.training.online.win_rate import judge_by_reward


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
        super().__init__(judge_by_reward(reward, temperature=temperature), decode)


class PrivateOracle:
    """Labels of another oracle under ε-randomised response: kept with probability e^ε/(1 + e^ε), before anything sees them.

    Tasks with it fit rewards and policies by `losses.randomised_response`; methods with a loss of their own refuse it.
    Labels are stored as they were flipped, so that steps and epochs on them cost nothing; k labels of one person cost kε.

    Args:
        oracle: who answers.
        epsilon: ε > 0, of one label.
        simulate: flip by the run's seeded generator, which a checkpoint holds: repeatable, and not private. By default the
            operating system draws.

    Reference: arXiv 2510.13512, Algorithm 2's labels (FOUND).
    """

    def __init__(self, oracle: Oracle, epsilon: float, *, simulate: bool = False) -> None:
        if isinstance(oracle, PrivateOracle):
            raise ArgumentError("oracle: its labels are private already; flipped twice they would carry another ε.")
        self.oracle, self.epsilon, self.simulate = oracle, check_epsilon(epsilon), simulate

    def loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """The loss that takes the flips into account."""
        return randomised_response(chosen, rejected, epsilon=self.epsilon)

    def __call__(self, prompts: Tensor, first: Tensor, second: Tensor, generator: torch.Generator) -> Tensor:
        answers = check_answers(self.oracle(prompts, first, second, generator))
        rate = 1 / (1 + math.exp(self.epsilon))
        if self.simulate:
            draws = torch.rand(answers.shape, generator=generator, dtype=torch.float64)
        else:
            system = secrets.SystemRandom()
            draws = torch.tensor([system.random() for _ in range(answers.numel())], dtype=torch.float64).view(answers.shape)
        return torch.where(draws < rate, 1 - answers, answers)
