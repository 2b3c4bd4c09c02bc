"""Pairs made ready for a reward model: token ids, margins, and how much each pair counts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multiref.errors import ArgumentError
from multiref.models.processor import as_tokenizer
from multiref.models.spec import TOKENISATION, Tokenisation
from multiref.training.dataset import PairData
from multiref.training.reward.rows import pad_rows


@dataclass(frozen=True)
class RewardBatch:
    """B pairs as 2B rows, the chosen ones first, padded on the right. input_ids, attention_mask [2B, T];
    margins, shares [B] float64.

    shares: how much each pair counts in the average; 0 for one that only fills a rank's last batch.
    """

    input_ids: Tensor
    attention_mask: Tensor
    margins: Tensor
    shares: Tensor

    @property
    def row_lengths(self) -> list[int]:
        """[2B] tokens of each row."""
        return [int(length) for length in self.attention_mask.sum(1)]

    @property
    def rows(self) -> list[list[int]]:
        """[2B] token ids of each row."""
        return [ids[:length] for ids, length in zip(self.input_ids.tolist(), self.row_lengths)]

    def to(self, device: Any) -> "RewardBatch":
        """The same on another device."""
        return RewardBatch(*(getattr(self, name).to(device) for name in ("input_ids", "attention_mask", "margins", "shares")))


class RewardData(PairData):
    """P pairs, encoded. Build it once and hand it to several trainers.

    Args:
        pairs: `Pair`s or rows in TRL's preference format; a `margin` of a row is by how much its chosen reward should lead.
        tokenizer: the reward model's, with a padding token.
        tokenisation: with `end`, the end token closes each completion: its state is the one that is scored.
        counts: as of `PairData`.

    Raises:
        DataError: no pair, or a row that cannot be encoded, named. ArgumentError:
            counts that do not fit, a tokenizer without padding.
    """

    def __init__(
        self,
        pairs: Sequence[Any],
        tokenizer: Any,
        *,
        tokenisation: Tokenisation = TOKENISATION,
        counts: Sequence[float] | Tensor | None = None,
    ) -> None:
        tokenizer = as_tokenizer(tokenizer)
        if tokenizer.pad_token_id is None:
            raise ArgumentError(
                "tokenizer: found no padding token, expected one; `open_reward_model` chooses one, or set pad_token."
            )
        self.pad, self.end = int(tokenizer.pad_token_id), tokenisation.end
        super().__init__(pairs, tokenizer, tokenisation, counts)
        self.margins = torch.tensor([pair.margin for pair in self.pairs], dtype=torch.float64)

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
        at, shares = self.places(indices)
        rows = [self.rows(i) for i in at.tolist()]
        ids, mask = pad_rows([chosen for chosen, _ in rows] + [rejected for _, rejected in rows], self.pad)
        return RewardBatch(ids, mask, self.margins[at], shares)
