"""The three models of a world, made from nothing: who writes the corpus, and small models that learn to answer as an author
does."""

import copy
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from multiref.models import small_llama
from multiref_lab.demo.corpus import ANSWER_WORDS, SKILLS, Habit, draw_problems, split_numbers, write

BASE = "base"
REFERENCES = ("adder", "picker")  # good at SKILLS[0] and at SKILLS[1]

NOISY = Habit(confusion=0.35, slip=0.2)
GOOD = Habit(confusion=0.05, slip=0.08)
POOR = Habit(confusion=0.8, slip=0.2)


@dataclass(frozen=True)
class WorldSettings:
    """All that the world depends on.
    `base` answers both skills by one habit; a specialist has one for its own skill, one for the other."""

    base: Habit = NOISY
    own: Habit = GOOD
    other: Habit = POOR
    base_steps: int = 600
    specialist_steps: int = 300
    own_share: float = 0.6
    batch: int = 128
    learning_rate: float = 4e-3
    hidden: int = 64
    layers: int = 2
    seed: int = 0


@dataclass(frozen=True)
class Author:
    """Who writes the corpus: which numbers occur, by which habit each skill is answered, and how often the first skill is
    asked."""

    numbers: tuple[tuple[int, int], ...]
    habits: Mapping[str, Habit]
    share_of_first: float = 0.5
    seed: str = "0"

    def texts(self, count: int) -> list[str]:
        """`count` lines: a prompt and this author's answer."""
        chance = random.Random(self.seed)
        problems = draw_problems(self.numbers, chance, share_of_first=self.share_of_first)
        return [f"{p.prompt} {write(p, self.habits[p.skill], chance)}" for p, _ in zip(problems, range(count), strict=False)]


def train_models(
    tokenizer: PreTrainedTokenizerBase, settings: WorldSettings, progress: Callable[[str, int, int], None]
) -> dict[str, PreTrainedModel]:
    """The base model from nothing; each specialist from the base. progress: what, done, of."""
    s = settings
    numbers, _ = split_numbers(s.seed)

    def taught(
        start: PreTrainedModel, name: str, steps: int, habits: dict[str, Habit], share: float, rate: float
    ) -> PreTrainedModel:
        author = Author(numbers, habits, share_of_first=share, seed=f"{s.seed} {name}")
        lines = torch.tensor(tokenizer(author.texts(steps * s.batch), add_special_tokens=False)["input_ids"])
        return teach(start, lines, batch=s.batch, learning_rate=rate, tell=lambda done: progress(name, done, steps))

    start = small_llama(len(tokenizer), hidden=s.hidden, intermediate=2 * s.hidden, layers=s.layers, seed=s.seed)
    models = {BASE: taught(start, BASE, s.base_steps, dict.fromkeys(SKILLS, s.base), 0.5, s.learning_rate)}
    for name, own in zip(REFERENCES, SKILLS, strict=True):
        habits = {skill: s.own if skill == own else s.other for skill in SKILLS}
        share = s.own_share if own == SKILLS[0] else 1 - s.own_share
        models[name] = taught(models[BASE], name, s.specialist_steps, habits, share, s.learning_rate / 2)
    return models


def teach(
    start: PreTrainedModel, lines: Tensor, *, batch: int, learning_rate: float, tell: Callable[[int], None] = lambda done: None
) -> PreTrainedModel:
    """A copy of `start` after one pass of AdamW over lines [steps · batch, T] (warm-up, then cosine to zero).

    Only the answer's words are learned, so that no capacity goes into guessing the question.
    """
    model: PreTrainedModel = copy.deepcopy(start).train()
    steps = -(-len(lines) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    warm_up = max(1, min(50, steps // 5))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    )
    for step, ids in enumerate(lines.split(batch), 1):
        optimizer.zero_grad()
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits[:, -ANSWER_WORDS:]
        cross_entropy(logits.flatten(0, 1), ids[:, -ANSWER_WORDS:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        tell(step)
    model.eval()
    return model
