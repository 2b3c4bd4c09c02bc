"""How completions are laid into rows of token ids: with the prompt shared, or each on its own."""

import itertools
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

    pieces = _Pieces.of(rows)
    width = int(pieces.widths.max(initial=width))
    shape = (len(rows), width)
    input_ids, position_ids, attention_mask, segments = (np.zeros(shape, dtype=np.int64) for _ in range(4))
    at = (pieces.row, pieces.column)
    input_ids[at], position_ids[at], attention_mask[at], segments[at] = pieces.ids, pieces.position, 1, pieces.segment

    chosen = np.flatnonzero(pieces.segment)
    chosen = chosen[np.argsort(pieces.owner[chosen], kind="stable")]  # the order of the completions, whatever shares a row
    before = np.where(pieces.first, pieces.prompt_length, pieces.column) - 1  # the column whose hidden state predicts the token

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(device)

    return Rows(
        input_ids=tensor(input_ids),
        position_ids=tensor(position_ids),
        attention_mask=tensor(attention_mask),
        mask=_mask(tensor(segments)) if shared else None,
        where=tensor((pieces.row * width + before)[chosen]),
        labels=tensor(pieces.ids[chosen]),
        owner=tensor(pieces.owner[chosen]),
        completions=count,
        padded=bool((pieces.widths < width).any()),
    )


@dataclass(frozen=True)
class _Pieces:
    """Every token of every row, row after row, as arrays: no Python work per token or per completion.

    A piece is a prompt (segment 0) or the row's k-th completion (segment k). first: the first token of its piece.
    """

    ids: np.ndarray
    row: np.ndarray
    column: np.ndarray
    position: np.ndarray
    segment: np.ndarray
    owner: np.ndarray
    first: np.ndarray
    prompt_length: np.ndarray
    widths: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[_Row]) -> "_Pieces":
        """The prompts and completions of rows, one after another, with whose they are."""
        texts = [ids for prompt, members in rows for ids in (prompt, *(ids for _, ids in members))]
        owners = [owner for _, members in rows for owner in (-1, *(owner for owner, _ in members))]
        members = np.array([len(members) for _, members in rows], dtype=np.int64)
        lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        heads = np.cumsum(members + 1) - (members + 1)  # the prompt's place among the pieces of its row
        row_of = np.repeat(np.arange(len(rows)), members + 1)
        segment_of = np.arange(len(texts)) - heads[row_of]
        starts = np.cumsum(lengths) - lengths
        prompt_of = lengths[heads][row_of]

        def spread(values: np.ndarray) -> np.ndarray:
            return np.repeat(values, lengths)

        total = int(lengths.sum())
        within = np.arange(total) - spread(starts)
        return cls(
            ids=np.fromiter(itertools.chain.from_iterable(texts), dtype=np.int64, count=total),
            row=spread(row_of),
            column=np.arange(total) - spread(starts[heads][row_of]),
            position=within + spread(np.where(segment_of > 0, prompt_of, 0)),
            segment=spread(segment_of),
            owner=spread(np.array(owners, dtype=np.int64)),
            first=within == 0,
            prompt_length=spread(prompt_of),
            widths=np.bincount(row_of, weights=lengths, minlength=len(rows)).astype(np.int64),
        )


def _mask(segments: Tensor) -> Tensor:
    """[B, T] → [B, 1, T, T] bool: a position sees what is before it in its own segment, and the prompt (segment 0)."""
    keys, queries = segments[:, None, None, :], segments[:, None, :, None]
    width = segments.shape[1]
    before = torch.ones(width, width, dtype=torch.bool, device=segments.device).tril()
    return ((keys == queries) | (keys == 0)) & before
