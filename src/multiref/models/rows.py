"""How completions are laid into rows of token ids: with the prompt shared, or each on its own."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from multiref.models.encoding import Encoded

_Row = tuple[tuple[int, ...], list[tuple[int, tuple[int, ...]]]]  # a prompt, and which completions follow it


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
    padded: whether any row is shorter than T
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    mask: Tensor | None
    where: Tensor
    labels: Tensor
    owner: Tensor
    completions: int
    padded: bool


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


def lay_out(batch: Sequence[Encoded], *, shared: bool, width: int = 0, device: torch.device | str = "cpu") -> Rows:
    """`batch` as one forward pass, its rows padded with token 0 to the longest, or to `width` where that is more.

    Shared: a row is prompt, completion 1, completion 2, …; a completion's positions restart after the prompt, and it sees the
    prompt and itself. The prompt's last hidden state predicts the first token of each. Separate: a row is prompt, completion.
    """
    rows: list[_Row] = []
    count = 0
    for encoded in batch:
        for prompt, indices in _contexts(encoded):
            members = [(count + index, encoded.completions[index]) for index in indices]
            rows += [(prompt, members)] if shared else [(prompt, [member]) for member in members]
        count += len(encoded.completions)

    lengths = [len(prompt) + sum(len(ids) for _, ids in members) for prompt, members in rows]
    width = max([width, *lengths])
    input_ids, position_ids, attention_mask, segments = np.zeros((4, len(rows), width), dtype=np.int64)
    where, labels = ([np.zeros(0, np.int64) for _ in range(count)] for _ in range(2))  # in the order of the completions
    for row, (prompt, members) in enumerate(rows):
        attention_mask[row, : lengths[row]] = 1
        column = begin = len(prompt)
        input_ids[row, :begin], position_ids[row, :begin] = prompt, np.arange(begin)
        for segment, (owner, ids) in enumerate(members, 1):
            part = slice(column, column + len(ids))
            input_ids[row, part], segments[row, part] = ids, segment
            position_ids[row, part] = np.arange(begin, begin + len(ids))
            labels[owner] = input_ids[row, part]
            where[owner] = row * width + np.arange(column - 1, part.stop - 1)
            where[owner][:1] = row * width + begin - 1
            column = part.stop

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(device)

    return Rows(
        input_ids=tensor(input_ids),
        position_ids=tensor(position_ids),
        attention_mask=tensor(attention_mask),
        mask=_mask(tensor(segments)) if shared else None,
        where=tensor(np.concatenate([np.zeros(0, np.int64), *where])),
        labels=tensor(np.concatenate([np.zeros(0, np.int64), *labels])),
        owner=tensor(np.repeat(np.arange(count), list(map(len, labels)))),
        completions=count,
        padded=any(length < width for length in lengths),
    )


def _mask(segments: Tensor) -> Tensor:
    """[B, T] → [B, 1, T, T] bool: a position sees what is before it in its own segment, and the prompt (segment 0)."""
    keys, queries = segments[:, None, None, :], segments[:, None, :, None]
    width = segments.shape[1]
    before = torch.ones(width, width, dtype=torch.bool, device=segments.device).tril()
    return ((keys == queries) | (keys == 0)) & before
