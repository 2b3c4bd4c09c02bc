"""How completions are laid into rows of token ids: with the prompt shared, or each on its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from multiref.errors import ArgumentError
from multiref.models.encoding import Encoded

__all__ = ["Rows", "lay_out", "row_length"]


@dataclass(frozen=True)
class Rows:
    """One forward pass. B rows of width T, padded on the right; n completion tokens in all, in the order of the completions.

    input_ids, position_ids, attention_mask (1 on tokens): [B, T]
    mask:   [B, 1, T, T] bool, True where a position (third axis) may see another (fourth); None where rows are separate,
            for then causal attention is right, the padding being on the right
    where:  [n] flat position (row · T + column) whose hidden state predicts the token
    labels: [n] the token
    owner:  [n] the completion to which it belongs, counted over the batch
    completions: how many there are
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    mask: Tensor | None
    where: Tensor
    labels: Tensor
    owner: Tensor
    completions: int


def row_length(encoded: Encoded, *, shared: bool) -> int:
    """Tokens that the longest row of this prompt takes."""
    rows = _contexts(encoded) if shared else [(prompt, [index]) for prompt, indices in _contexts(encoded) for index in indices]
    return max((len(prompt) + sum(len(encoded.completions[i]) for i in indices) for prompt, indices in rows), default=0)


def _contexts(encoded: Encoded) -> list[tuple[tuple[int, ...], list[int]]]:
    """The different prompts of an `Encoded` (more than one only where truncation cut them differently) and whose they are."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index in range(len(encoded.completions)):
        groups.setdefault(encoded.context(index), []).append(index)
    return list(groups.items())


def lay_out(batch: Sequence[Encoded], *, shared: bool, pad: int = 0, device: torch.device | str = "cpu") -> Rows:
    """`batch` as one forward pass.

    Shared: a row is prompt, completion 1, completion 2, …; a completion's positions restart after the prompt, and it sees the
    prompt and itself. The prompt's last hidden state predicts the first token of each. Separate: a row is prompt, completion.
    """
    rows: list[tuple[tuple[int, ...], list[tuple[int, tuple[int, ...]]]]] = []
    count = 0
    for encoded in batch:
        for prompt, indices in _contexts(encoded):
            if not prompt:
                raise ArgumentError(
                    "A prompt has no token; expected at least a start token, from which the first token is predicted."
                )
            members = [(count + index, encoded.completions[index]) for index in indices]
            rows += [(prompt, members)] if shared else [(prompt, [member]) for member in members]
        count += len(encoded.completions)

    width = max((len(prompt) + sum(len(ids) for _, ids in members) for prompt, members in rows), default=0)
    input_ids = torch.full((len(rows), width), pad, dtype=torch.long)
    position_ids = torch.zeros_like(input_ids)
    attention_mask = torch.zeros_like(input_ids)
    mask = torch.ones(width, width, dtype=torch.bool).tril().repeat(len(rows), 1, 1, 1) if shared else None
    tokens: list[tuple[int, int, int]] = []  # owner, where, label
    for row, (prompt, members) in enumerate(rows):
        start = len(prompt)
        input_ids[row, :start] = torch.tensor(prompt)
        position_ids[row, :start] = torch.arange(start)
        last, column = row * width + start - 1, start
        for owner, ids in members:
            stop = column + len(ids)
            input_ids[row, column:stop] = torch.tensor(ids, dtype=torch.long)
            position_ids[row, column:stop] = torch.arange(start, start + len(ids))
            if mask is not None:
                mask[row, 0, column:stop, start:column] = False
            before = [last, *range(row * width + column, row * width + stop - 1)]
            tokens += [(owner, position, label) for position, label in zip(before, ids)]
            column = stop
        attention_mask[row, :column] = 1
    tokens.sort(key=lambda token: token[0])  # stable: the order of the completions, whatever shares a row
    owner_, where, labels = torch.tensor(tokens, dtype=torch.long).reshape(-1, 3).unbind(1)
    return Rows(
        input_ids=input_ids.to(device),
        position_ids=position_ids.to(device),
        attention_mask=attention_mask.to(device),
        mask=None if mask is None else mask.to(device),
        where=where.to(device),
        labels=labels.to(device),
        owner=owner_.to(device),
        completions=count,
    )
