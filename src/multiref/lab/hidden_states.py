"""Features from a real model: its frozen last hidden state at the end of each completion, whitened down to d dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from multiref.errors import ArgumentError

__all__ = ["hidden_state_features", "principal_features"]


def hidden_state_features(
    model: Any, tokenizer: Any, prompts: Sequence[Any], completions: Sequence[Sequence[Any]], *, dimension: int
) -> Tensor:
    """X prompts with Y completions each → [X, Y, d] float64, for `linear_bandits(features=…)`.

    The feature of a completion is the model's last hidden state at its last token; see `principal_features` for the d directions kept.

    Args:
        model: a causal language model in evaluation mode (`multiref.models.load(...).model`), not changed.
        completions: the same number Y for every prompt.

    Raises:
        ArgumentError: prompts with different numbers of completions, or more dimensions than the states have.
    """
    from multiref.models import encode

    counts = {len(each) for each in completions}
    if len(counts) != 1 or len(prompts) != len(completions) or not prompts:
        raise ArgumentError(
            f"completions: found {len(completions)} lists of lengths {sorted(counts)} for {len(prompts)} prompts, "
            f"expected one list a prompt, all of one length; pad or cut the longer ones"
        )
    states = []
    device = next(model.parameters()).device
    with torch.inference_mode():
        for prompt, texts in zip(prompts, completions):
            encoded = encode(tokenizer, prompt, texts)
            for i, ids in enumerate(encoded.completions):
                row = torch.tensor([[*encoded.context(i), *ids]], device=device)
                states.append(model(input_ids=row, output_hidden_states=True).hidden_states[-1][0, -1].double().cpu())
    return principal_features(torch.stack(states).unflatten(0, (len(prompts), -1)), dimension)


def principal_features(states: Tensor, dimension: int) -> Tensor:
    """[X, Y, H] → [X, Y, d]: centred within each prompt, rotated to the d principal directions, each scaled to variance 1/d.

    Raises:
        ArgumentError: the centred states span fewer than d directions.
    """
    centred = states - states.mean(-2, keepdim=True)
    _, scale, directions = torch.linalg.svd(centred.flatten(0, -2), full_matrices=False)
    rank = int((scale > 1e-9 * scale[0]).sum())
    if rank < dimension:
        raise ArgumentError(
            f"dimension: found {dimension}, expected at most {rank}, the directions these completions differ in; ask for fewer"
        )
    kept = centred @ directions[:dimension].T
    return kept / (kept.flatten(0, -2).std(0) * dimension**0.5)
