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
    segments = torch.zeros_like(input_ids)  # 0 in the prompt, k in the row's k-th completion
    parts: list[tuple[int, Tensor, Tensor]] = []  # owner, where, labels
    for row, (prompt, members) in enumerate(rows):
        start = len(prompt)
        input_ids[row, :start] = torch.tensor(prompt)
        position_ids[row, :start] = torch.arange(start)
        last, column = row * width + start - 1, start
        for number, (owner, ids) in enumerate(members, 1):
            stop, labels = column + len(ids), torch.tensor(ids, dtype=torch.long)
            input_ids[row, column:stop] = labels
            position_ids[row, column:stop] = torch.arange(start, start + len(ids))
            segments[row, column:stop] = number
            where = torch.arange(row * width + column - 1, row * width + stop - 1)
            where[:1] = last
            parts.append((owner, where, labels))
            column = stop
        attention_mask[row, :column] = 1
    parts.sort(key=lambda part: part[0])  # the order of the completions, whatever shares a row
    lengths = torch.tensor([len(labels) for _, _, labels in parts], dtype=torch.long)
    none = torch.zeros(0, dtype=torch.long)
    return Rows(
        input_ids=input_ids.to(device),
        position_ids=position_ids.to(device),
        attention_mask=attention_mask.to(device),
        mask=_mask(segments.to(device)) if shared else None,
        where=torch.cat([none, *(where for _, where, _ in parts)]).to(device),
        labels=torch.cat([none, *(labels for _, _, labels in parts)]).to(device),
        owner=torch.arange(count).repeat_interleave(lengths).to(device),
        completions=count,
    )


def _mask(segments: Tensor) -> Tensor:
    """[B, T] → [B, 1, T, T] bool: a position sees what is before it in its own segment, and the prompt (segment 0)."""
    keys, queries = segments[:, None, None, :], segments[:, None, :, None]
    width = segments.shape[1]
    before = torch.ones(width, width, dtype=torch.bool, device=segments.device).tril()
    return ((keys == queries) | (keys == 0)) & before
