"""Forward passes over rollouts: which prompts go together, and their completions' token log-probabilities as padded rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from multiref.models.batching import token_budget_batches
from multiref.models.encoding import Encoded
from multiref.models.logps import token_logps
from multiref.references.rollouts import Rollout

__all__ = ["encoded_group", "padded", "passes", "policy_tokens"]

SHARED_LIMIT = 1024  # attention grows with the square of a row: longer groups are scored one completion a row


def encoded_group(rollout: Rollout) -> Encoded:
    """A prompt with all its completions, as models take it."""
    return rollout.encoded()


def passes(rollouts: Sequence[Rollout], token_budget: int, weights: Tensor | None = None) -> list[list[int]]:
    """Indices of prompts that go through the model together, groups whole, (rows) × (longest row) within the budget where a group allows.

    weights: [K, prompts] where prompts are routed: those with the same references go together, so that no reference runs on what it has no part in.
    """
    lengths = [len(r.completion_ids) * (len(r.prompt_ids) + max(map(len, r.completion_ids))) for r in rollouts]
    routes: dict[Any, list[int]] = {}
    for i in range(len(rollouts)):
        route = tuple((weights[:, i] > 0).tolist()) if weights is not None and weights.ndim == 2 else None
        routes.setdefault(route, []).append(i)
    return [
        [members[i] for i in part]
        for members in routes.values()
        for part in token_budget_batches([lengths[m] for m in members], token_budget)
    ]


def policy_tokens(model: Any, batch: Sequence[Rollout]) -> tuple[Tensor, Tensor]:
    """(token log-probabilities [N, T], differentiable, zero where padded; mask [N, T])."""
    row = max(len(r.prompt_ids) + sum(map(len, r.completion_ids)) for r in batch)
    saved = max(len(r.prompt_ids) * (len(r.completion_ids) - 1) for r in batch)
    shared = None if row <= SHARED_LIMIT and saved > 0.1 * row else False
    parts = token_logps(model, [encoded_group(rollout) for rollout in batch], shared_prompt=shared)
    lengths = torch.tensor([len(part) for part in parts], device=parts[0].device)
    rows = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
    return rows, torch.arange(rows.shape[1], device=rows.device)[None] < lengths[:, None]


def padded(rows: Tensor, width: int) -> Tensor:
    """[*, T] → [*, width], zero (False) behind."""
    return torch.nn.functional.pad(rows, (0, width - rows.shape[-1])) if rows.shape[-1] < width else rows
