"""Rollouts for training: completions of the policy as it is, drawn by `models.sampling` from torch's own generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from multiref.models import Generation, Rollout, sampling

__all__ = ["sample"]


def sample(model: nn.Module, tokenizer: Any, prompts: Sequence[Any], generation: Generation, *, group: int) -> list[Rollout]:
    """`group` completions of each prompt; without log-probabilities, for they are the policy's as it is."""
    drawn = sampling.sample(model, tokenizer, prompts, generation, group=group, generator=torch.default_generator)
    return [replace(rollout, sampled_logps=None) for rollout in drawn]
