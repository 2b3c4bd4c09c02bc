"""Supervised training on worked answers: how the base is warmed up and how specialists are made."""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import peft
import torch

from multiref.models import LanguageModel, encode_many, token_logps
from multiref_lab.real.problems import Problem

LORA: dict[str, Any] = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}


def teach(
    start: LanguageModel,
    problems: Sequence[Problem],
    *,
    batch: int,
    learning_rate: float,
    seed: int,
    tell: Callable[[int, int], object] = lambda done, of: None,
) -> Any:
    """The model with a LoRA adapter, a `peft.PeftModel`, after one pass of AdamW on −log π(answer) per token
    (warm-up, then cosine to zero)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = peft.get_peft_model(start.model, peft.LoraConfig(task_type="CAUSAL_LM", **LORA)).eval()
    items = encode_many(start.tokenizer, [(problem.prompt, (problem.said(problem.worked),)) for problem in problems])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    steps, chance = -(-len(items) // batch), random.Random(seed)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / max(1, steps // 5)) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))),
    )
    order = chance.sample(range(len(items)), len(items))
    for step, first in enumerate(range(0, len(order), batch), 1):
        optimizer.zero_grad()
        logps = torch.cat(token_logps(model, [items[place] for place in order[first : first + batch]]))
        (-logps.mean()).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        tell(step, steps)
    return model
