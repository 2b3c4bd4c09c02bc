"""Rollouts for training: completions of the policy as it is, drawn by `models.sampling` from torch's own generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from multiref.models import sampling
from multiref.models.sampling import Rollout, end_ids
from multiref.models.sampling import decode_behind as texts_of
from multiref.models.sampling import encode_prompts as prompt_ids
from multiref.models.spec import Generation

__all__ = ["end_ids", "prompt_ids", "sample", "texts_of"]


def sample(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Any],
    *,
    group: int,
    max_new_tokens: int,
    batch: int | None = None,
    cache: Any = None,
    temperature: float = 1.0,
) -> list[Rollout]:
    """`group` completions of each prompt; without log-probabilities, for they are the policy's as it is."""
    generation = Generation(max_new_tokens, temperature=temperature, batch=batch, cache=cache)
    drawn = sampling.sample(model, tokenizer, prompts, generation, group=group, generator=torch.default_generator)
    return [replace(rollout, sampled_logps=None) for rollout in drawn]
