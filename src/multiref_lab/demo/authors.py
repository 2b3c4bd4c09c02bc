"""The three models of a world, made from nothing: who writes the corpus, and small models that learn to answer as an author
does."""

import copy
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

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


def train_models(
    tokenizer: PreTrainedTokenizerBase, settings: WorldSettings, progress: Callable[[str, int, int], None]
) -> dict[str, PreTrainedModel]:
    """The base model from nothing; each specialist from the base. progress: what, done, of."""
    s = settings
    numbers, _ = split_numbers(s.seed)

    def taught(
        start: PreTrainedModel, name: str, steps: int, habits: dict[str, Habit], share: float, rate: float
    ) -> PreTrainedModel:
        chance = random.Random(f"{s.seed} {name}")
        problems = islice(draw_problems(numbers, chance, share_of_first=share), steps * s.batch)
        corpus = [f"{p.prompt} {write(p, habits[p.skill], chance)}" for p in problems]
        lines = torch.tensor(tokenizer(corpus, add_special_tokens=False)["input_ids"])
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
