"""Who answers which of two completions is better: a function, a reward as judge, or a person, who reads pairs from one file and
writes labels into another; nothing is lost if either side stops."""

import hashlib
import json
import math
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multiref._files import as_path, read_text, write_whole
from multiref._json import parse_json
from multiref.errors import ArgumentError, DataError, MultirefError
from multiref.losses import check_epsilon, randomised_response
from multiref.training.checks import read_chances
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

    Raises, when asked: DataError for an answer that is no number in [0, 1], naming the pair, or too few of them; LabelsLate
    where the function raised TimeoutError.
    """

    def __init__(
        self, function: Callable[[Sequence[str], Sequence[str], Sequence[str]], Sequence[float]], decode: Callable[..., Any]
    ):
        self.function, self.decode = function, decode

    def __call__(self, prompts: Tensor, first: Tensor, second: Tensor, generator: torch.Generator) -> Tensor:
        texts, one = self.decode(prompts, first)
        _, two = self.decode(prompts, second)
        try:
            answers = read_chances(self.function(texts, one, two), len(texts), "oracle", DataError)
        except TimeoutError as error:
            raise LabelsLate(
                f"oracle: no answer to {len(texts)} pairs in time ({error}); the state of the round before is kept, run again"
            ) from error
        except MultirefError:
            raise
        except Exception as error:  # other people's code
            raise DataError(
                f"oracle: the judge raised {type(error).__name__}: {error}. The state of the round before is kept; "
                "mend it and run again"
            ) from error
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


class HumanLabels:
    """`folder/pairs-<round>.jsonl` out: {"id", "prompt", "first", "second"} a line.
    `folder/labels-<round>.jsonl` in: {"id", "preferred": "first" | "second"}.

    Asked again with the same pairs at the same moment of the run (a resumed run), it writes nothing anew and reads the labels
    that are there. The files of a round are named by the pairs themselves, so that labels cannot land on other pairs.

    Args:
        decode: (prompt numbers, completions) → prompt texts, completion texts.
        wait: seconds to wait for labels before `LabelsLate`.

    Raises, when asked:
        LabelsLate; DataError: unknown ids, an id twice, neither side preferred, a line that is no JSON, each with file and row.
    """

    def __init__(self, folder: str | Path, decode: Callable[..., Any], *, wait: float = 0.0, look_every: float = 2.0):
        if not wait >= 0 or not look_every > 0:
            raise ArgumentError(f"wait: found {wait} and look_every {look_every}, expected seconds")
        self.folder, self.decode, self.wait, self.look_every = as_path(folder), decode, wait, look_every

    def __call__(self, prompts: Tensor, first: Tensor, second: Tensor, generator: torch.Generator) -> Tensor:
        texts, one = self.decode(prompts, first)
        _, two = self.decode(prompts, second)
        rows = [{"prompt": p, "first": a, "second": b} for p, a, b in zip(texts, one, two, strict=True)]
        now = bytes(generator.get_state().tolist())  # the same pairs, asked at another moment of the run, are labelled anew
        name = hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode() + now).hexdigest()[:12]
        ids = [f"{name}-{place}" for place in range(len(rows))]
        asked, answered = self.folder / f"pairs-{name}.jsonl", self.folder / f"labels-{name}.jsonl"
        if not asked.exists():
            write_whole(asked, "".join(json.dumps({"id": i, **row}, ensure_ascii=False) + "\n" for i, row in zip(ids, rows)))
        deadline = time.monotonic() + self.wait
        while True:
            labels = read_labels(answered, ids) if answered.exists() else {}
            if len(labels) == len(ids):
                return torch.tensor([labels[i] for i in ids], dtype=torch.float64).reshape(first.shape[:-1])
            if time.monotonic() >= deadline:
                raise LabelsLate(
                    f"{answered}: {len(labels)} of {len(ids)} labels are there after {self.wait:g} s; label the pairs in "
                    f"{asked} and run again"
                )
            time.sleep(min(self.look_every, max(deadline - time.monotonic(), 0.01)))


def read_labels(path: Path, ids: list[str]) -> dict[str, float]:
    """{id: 1.0 where the first is preferred}. A last line that is not finished yet (no newline) is left for the next look."""
    known, found = set(ids), {}
    lines = read_text(path, "labels, one a line").split("\n")
    for row, line in enumerate(lines[:-1], start=1):
        if not line.strip():
            continue
        try:
            label = parse_json(line, f"{path}:{row}")
            identity, preferred = label["id"], label["preferred"]
        except (ValueError, TypeError, KeyError):
            raise DataError(
                f'{path}:{row}: expected {{"id": …, "preferred": "first" or "second"}}, found {line[:80]!r}'
            ) from None
        if not isinstance(identity, str) or identity not in known:
            raise DataError(
                f"{path}:{row}: id {identity!r} is none of the {len(ids)} pairs asked; expected ids such as {ids[0]!r}; "
                "remove the line"
            )
        if identity in found:
            raise DataError(f"{path}:{row}: id {identity!r} is labelled a second time; keep one line for each pair")
        if preferred not in ("first", "second"):
            raise DataError(f'{path}:{row}: preferred is {preferred!r}, neither side; expected "first" or "second"')
        found[identity] = 1.0 if preferred == "first" else 0.0
    return found
