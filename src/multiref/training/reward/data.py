"""Pairs made ready for a reward model: token ids, margins, and how much each pair counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from multiref.data import Pair, as_pair
from multiref.errors import ArgumentError, DataError
from multiref.models.spec import TOKENISATION, Tokenisation
from multiref.training.dataset import checked_counts, encoded_pairs

__all__ = ["RewardBatch", "RewardData", "collate", "padded"]


@dataclass(frozen=True)
class RewardBatch:
    """B pairs as 2B rows, the chosen ones first, padded on the right. input_ids, attention_mask [2B, T]; margins, shares [B] float64.

    shares: how much each pair counts in the average; 0 for one that only fills a rank's last batch.
    """

    input_ids: Tensor
    attention_mask: Tensor
    margins: Tensor
    shares: Tensor

    def to(self, device: Any) -> RewardBatch:
        """The same on another device."""
        return RewardBatch(*(getattr(self, name).to(device) for name in ("input_ids", "attention_mask", "margins", "shares")))


class RewardData(Dataset):
    """P pairs, encoded. Build it once and hand it to several trainers.

    Args:
        pairs: `Pair`s or rows in TRL's preference format; a `margin` of a row is by how much its chosen reward should lead.
        tokenizer: the reward model's, with a padding token.
        tokenisation: with `end`, the end token closes each completion: its state is the one that is scored.
        counts: [P] how much each pair counts, at least zero; None: one each. A preference known as a probability p is the pair with count p and the
            reversed pair with count 1 − p.

    Raises:
        DataError: no pair, or a row that cannot be encoded, named. ArgumentError: counts that do not fit, a tokenizer without padding.
    """

    def __init__(
        self,
        pairs: Sequence[Any],
        tokenizer: Any,
        *,
        tokenisation: Tokenisation = TOKENISATION,
        counts: Sequence[float] | Tensor | None = None,
    ) -> None:
        self.pairs: list[Pair] = [as_pair(pair, origin=f"pair {number}") for number, pair in enumerate(pairs, 1)]
        if not self.pairs:
            raise DataError("No pair was given; expected at least one.")
        if tokenizer.pad_token_id is None:
            raise ArgumentError(
                "tokenizer: found no padding token, expected one; `open_reward_model` chooses one, or set pad_token."
            )
        self.pad, self.end = int(tokenizer.pad_token_id), tokenisation.end
        self.encoded = encoded_pairs(self.pairs, tokenizer, tokenisation)
        self.margins = torch.tensor([pair.margin for pair in self.pairs], dtype=torch.float64)
        self.counts = checked_counts(counts, len(self.pairs))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[RewardData, int]:
        """The pair at `index`; at −1 − index the same pair, to fill a batch without counting."""
        return self, index

    @property
    def row_lengths(self) -> list[int]:
        """[P] tokens of each pair's longer row."""
        return [max(map(len, self.rows(i))) for i in range(len(self))]

    def rows(self, index: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Token ids of prompt and completion: of the chosen, and of the rejected one."""
        item = self.encoded[index]
        chosen, rejected = ((*item.context(k), *item.completions[k]) for k in (0, 1))
        return chosen, rejected

    def batch(self, indices: Sequence[int]) -> RewardBatch:
        """The pairs at `indices`; a negative one, −1 − i, is pair i that fills without counting."""
        places = [i if i >= 0 else -1 - i for i in indices]
        rows = [self.rows(i) for i in places]
        ids, mask = padded([chosen for chosen, _ in rows] + [rejected for _, rejected in rows], self.pad)
        at = torch.tensor(places, dtype=torch.long)
        return RewardBatch(ids, mask, self.margins[at], self.counts[at] * torch.tensor([i >= 0 for i in indices]))


def padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Rows of token ids → ids and mask [N, T], padded on the right."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])


def collate(items: Sequence[tuple[RewardData, int]]) -> dict[str, Any]:
    """Items of one `RewardData` → {"index": [B] int64, "pairs": RewardBatch}."""
    data = items[0][0]
    indices = [index for _, index in items]
    return {"index": torch.tensor(indices), "pairs": data.batch(indices)}
