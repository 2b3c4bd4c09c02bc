"""Features from a real model: its frozen last hidden state at the end of each completion, whitened down to d dimensions."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from multiref.errors import ArgumentError


def hidden_state_features(
    model: Any, tokenizer: Any, prompts: Sequence[Any], completions: Sequence[Sequence[Any]], *, dimension: int
) -> Tensor:
    """X prompts with Y completions each → [X, Y, d] float64, for `linear_bandits(features=…)`.

    The feature of a completion is the model's last hidden state at its last token;
    see `principal_features` for the d directions kept.

    Args:
        model: a causal language model in evaluation mode (`multiref.models.load(...).model`), not changed.
        completions: the same number Y for every prompt.

    Raises:
        ArgumentError: prompts with different numbers of completions, or more dimensions than the states have.
    """
    counts = {len(each) for each in completions}
    if len(counts) != 1 or len(prompts) != len(completions) or not prompts:
        raise ArgumentError(
            f"completions: found {len(completions)} lists of lengths {sorted(counts)} for {len(prompts)} prompts, "
            f"expected one list a prompt, all of one length; pad or cut the longer ones"
        )
    from multiref.models import encode_many

    encoded = encode_many(tokenizer, list(zip(prompts, completions, strict=True)))
    rows = [[*item.context(i), *ids] for item in encoded for i, ids in enumerate(item.completions)]
    states = _last_states(model, rows)
    return principal_features(states.unflatten(0, (len(prompts), -1)), dimension)


@torch.inference_mode()
def _last_states(model: Any, rows: Sequence[Sequence[int]], *, size: int = 64) -> Tensor:
    """[N, H] float64: the last hidden state at each row's last token.
    Padding is on the right, where a causal model does not look.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    states: list[Tensor] = [torch.empty(0)] * len(rows)
    for start in range(0, len(order), size):
        some = order[start : start + size]
        ids = pad_sequence([torch.tensor(rows[i]) for i in some], batch_first=True).to(device)
        mask = pad_sequence([torch.ones(len(rows[i]), dtype=torch.long) for i in some], batch_first=True).to(device)
        hidden = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
        for i, state in zip(some, hidden, strict=True):
            states[i] = state[len(rows[i]) - 1].double().cpu()
    return torch.stack(states)


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
    scale = kept.flatten(0, -2).std(0) * dimension**0.5
    return torch.div(kept, scale)
