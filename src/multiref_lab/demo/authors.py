"""Teaching a small model to answer as an author does: plain cross-entropy on the two answer words."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from multiref_lab.demo.corpus import ANSWER_WORDS, Habit, draw_problems, write

__all__ = ["Author", "one_thread", "teach"]


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread of torch inside: these models are too small to share, a busy machine does not stall them, and sums come in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Author:
    """Who writes the corpus: which numbers occur, by which habit each skill is answered, and how often the first skill is asked."""

    numbers: tuple[tuple[int, int], ...]
    habits: Mapping[str, Habit]
    share_of_first: float = 0.5
    seed: str = "0"

    def texts(self, count: int) -> list[str]:
        """`count` lines: a prompt and this author's answer."""
        chance = random.Random(self.seed)
        problems = draw_problems(self.numbers, chance, share_of_first=self.share_of_first)
        return [f"{p.prompt} {write(p, self.habits[p.skill], chance)}" for p, _ in zip(problems, range(count), strict=False)]


def teach(
    start: Any,
    tokenizer: Any,
    author: Author,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    tell: Callable[[int], None] = lambda done: None,
) -> Any:
    """A copy of `start` after `steps` steps of AdamW (warm-up, then cosine to zero) on fresh lines of the author; no line is seen twice.

    Only the answer's words are learned, so that no capacity goes into guessing the question.
    """
    model = copy.deepcopy(start).train()
    ids = torch.tensor(tokenizer(author.texts(steps * batch), add_special_tokens=False)["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    warm_up = max(1, min(50, steps // 5))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    )
    for step, lines in enumerate(ids.split(batch)):
        optimizer.zero_grad()
        _loss(model, lines).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        tell(step + 1)
    return model.eval()


def _loss(model: Any, ids: Tensor) -> Tensor:
    """Mean over answer words of −log π(word | what stands before it)."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits[:, -ANSWER_WORDS:]
    return cross_entropy(logits.flatten(0, 1), ids[:, -ANSWER_WORDS:].flatten())
