"""How completions are laid into rows of token ids: with the prompt shared, or each on its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from multiref.models.encoding import Encoded, Ids


@dataclass(frozen=True)
class Rows:
    """One forward pass. B rows of width T, padded on the right; n completion tokens in all, in the order of the completions.

    input_ids, position_ids, attention_mask (1 on tokens): [B, T]
    mask:   [B, 1, T, T] bool, True where a position (third axis) may see another (fourth); None where rows are separate,
            for then causal attention is right, the padding being on the right
    where:  [n] flat position (row · T + column) whose hidden state predicts the token
    labels: [n] the token
    owner:  [n] the completion to which it belongs, counted over the batch
    padded: whether any row is shorter than T
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    mask: Tensor | None
    where: Tensor
    labels: Tensor
    owner: Tensor
    padded: bool


def row_length(encoded: Encoded, *, shared: bool) -> int:
    """Tokens that the longest row of this prompt takes."""
    rows = _rows_of(encoded, shared)
    return max((len(prompt) + sum(len(encoded.completions[i]) for i in some) for prompt, some in rows), default=0)


def _rows_of(encoded: Encoded, shared: bool) -> list[tuple[Ids, list[int]]]:
    """The prompt of each row of an `Encoded`, and which completions follow it. Shared there is more than one only where
    truncation cut the prompt differently."""
    groups: dict[Ids, list[int]] = {}
    for index in range(len(encoded.completions)):
        groups.setdefault(encoded.context(index), []).append(index)
    return [(prompt, some) for prompt, own in groups.items() for some in ([own] if shared else [[index] for index in own])]


def lay_out(batch: Sequence[Encoded], *, shared: bool, width: int = 0, device: torch.device | str = "cpu") -> Rows:
    """`batch` as one forward pass, its rows padded with token 0 to the longest, or to `width` where that is more.

    Shared: a row is prompt, completion 1, completion 2, …; a completion's positions restart after the prompt, and it sees the
    prompt and itself. The prompt's last hidden state predicts the first token of each. Separate: a row is prompt, completion.
    """
    pieces: list[Ids] = []  # of each row the prompt, then completions
    owners: list[int] = []  # the completion that a piece is; -1: a prompt
    count = 0
    for encoded in batch:
        for prompt, some in _rows_of(encoded, shared):
            pieces += [prompt, *(encoded.completions[index] for index in some)]
            owners += [-1, *(count + index for index in some)]
        count += len(encoded.completions)

    owner, lengths = np.array(owners, np.int64), np.fromiter(map(len, pieces), np.int64, len(pieces))
    heads, starts = np.flatnonzero(owner < 0), lengths.cumsum() - lengths
    row_of = np.cumsum(owner < 0) - 1
    widths = np.bincount(row_of, lengths, len(heads)).astype(np.int64)
    width = max(width, int(widths.max(initial=0)))
    # each of these has one number a token
    piece = np.repeat(np.arange(len(pieces)), lengths)
    ids = np.fromiter(chain.from_iterable(pieces), np.int64, len(piece))
    head, at, row = heads[row_of][piece], np.arange(len(piece)), row_of[piece]
    within, column, begin = at - starts[piece], at - starts[head], lengths[head]
    position, before = np.where(piece > head, within + begin, within), np.where(within > 0, column, begin) - 1
    input_ids, position_ids, attention_mask, segments = np.zeros((4, len(heads), width), np.int64)
    for filled, values in ((input_ids, ids), (position_ids, position), (attention_mask, 1), (segments, piece - head)):
        filled[row, column] = values
    chosen = np.flatnonzero(piece > head)
    chosen = chosen[owner[piece[chosen]].argsort(kind="stable")]  # completions in their order, where several share a row

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(device)

    return Rows(
        input_ids=tensor(input_ids),
        position_ids=tensor(position_ids),
        attention_mask=tensor(attention_mask),
        mask=_mask(tensor(segments)) if shared else None,
        where=tensor((row * width + before)[chosen]),
        labels=tensor(ids[chosen]),
        owner=tensor(owner[piece[chosen]]),
        padded=bool((widths < width).any()),
    )


def _mask(segments: Tensor) -> Tensor:
    """[B, T] → [B, 1, T, T] bool: a position sees what is before it in its own segment, and the prompt (segment 0)."""
    keys, queries = segments[:, None, None, :], segments[:, None, :, None]
    width = segments.shape[1]
    before = torch.ones(width, width, dtype=torch.bool, device=segments.device).tril()
    return ((keys == queries) | (keys == 0)) & before
