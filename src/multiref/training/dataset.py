"""Pairs made ready for training, once: token ids under the policy's tokenizer, joined by content with the stored scores of the
references."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
import xxhash
from torch import Tensor, nn
from torch.utils.data import Dataset

from multiref.data import Pair, as_pairs
from multiref.data.spooled import SpooledPairs, select
from multiref.errors import ArgumentError, DataError, MultirefWarning
from multiref.models import Encoded, completion_logps, encode_many
from multiref.models.chat import Chat
from multiref.models.encoding import check_one_prompt
from multiref.models.spec import TOKENISATION, Tokenisation
from multiref.references.scores import SequenceScores
from multiref.training.batching import merge_pairs
from multiref.training.checks import check_choice
from multiref.training.encoded_rows import EncodedRows
from multiref.training.objectives import PairLogps

PART = 1024  # pairs that are encoded at once, of those on disk


@dataclass(frozen=True)
class PairBatch:
    """B pairs on their way to the model. Not a tensor on purpose: what casts batches to half precision must not touch scores.

    encoded: B prompts with their two completions (chosen first); references [K, B, 2] float64; ref_lengths [K, B, 2];
    shares [B] float64: how much each pair counts in the average; 0 for one that only fills a rank's last batch.
    """

    encoded: tuple[Encoded, ...]
    references: Tensor
    ref_lengths: Tensor
    shares: Tensor

    def __len__(self) -> int:
        return len(self.encoded)

    @property
    def lengths(self) -> Tensor:
        """[B, 2]: tokens of each completion in the policy's tokenizer."""
        return torch.tensor([[len(ids) for ids in item.completions] for item in self.encoded])

    @property
    def row_lengths(self) -> list[int]:
        """Tokens of each pair's row: the prompt once, both completions."""
        return [len(item.prompt_ids) + sum(map(len, item.completions)) for item in self.encoded]

    def logps(self, model: nn.Module) -> PairLogps:
        """What an objective is shown of these pairs under this policy, in one pass, in which no completion comes twice."""
        rows, _, places = merge_pairs(self.encoded)
        policy = completion_logps(model, rows)[places].reshape(-1, 2)
        device = policy.device
        return PairLogps(policy, self.references.to(policy), self.lengths.to(device), self.ref_lengths.to(device))

    def take(self, indices: Sequence[int]) -> "PairBatch":
        """The pairs at these positions."""
        at = torch.tensor(list(indices), dtype=torch.long)
        encoded = tuple(self.encoded[i] for i in indices)
        return PairBatch(encoded, self.references[:, at], self.ref_lengths[:, at], self.shares[at])


class PairData(Dataset[tuple["PairData", int]]):
    """P pairs, encoded. Abstract: a dataset whose batches are made at once, by `batch`.

    Args:
        pairs: `Pair`s or rows in TRL's preference format.
        counts: [P] how much each pair counts in the average, at least zero; None: one each.
            A preference known as a probability p is the pair with count p and the reversed pair with count 1 − p.
    """

    def __init__(
        self, pairs: Sequence[Any], tokenizer: Any, tokenisation: Tokenisation, counts: Sequence[float] | Tensor | None
    ) -> None:
        on_disk = isinstance(pairs, SpooledPairs)
        numbered = ((f"pair {number}", pair) for number, pair in enumerate(() if on_disk else pairs, 1))
        self.pairs: Sequence[Pair] = pairs if on_disk else list(as_pairs(numbered, "The pairs"))
        if not self.pairs:
            raise DataError("No pair was given; expected at least one.")
        given = torch.ones(len(self.pairs)) if counts is None else counts
        self.counts = torch.as_tensor(given, dtype=torch.float64)
        if self.counts.shape != (len(self),) or not bool((self.counts >= 0).all()) or not 0 < self.counts.sum() < torch.inf:
            raise ArgumentError(
                f"counts: expected {len(self)} finite numbers, at least zero and not all zero; found shape "
                f"{tuple(self.counts.shape)}."
            )
        self.tokenisation = tokenisation
        self.encoded = _encoded(self.pairs, tokenizer, tokenisation)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> "tuple[PairData, int]":
        """The pair at `index`; at −1 − index the same pair, to fill a batch without counting."""
        return self, index

    @property
    def row_lengths(self) -> Sequence[int] | np.ndarray:
        """[P] tokens of each pair's row: the prompt once, both completions."""
        if isinstance(self.encoded, EncodedRows):
            return self.encoded.row_lengths
        return [len(item.prompt_ids) + sum(map(len, item.completions)) for item in self.encoded]

    @cached_property
    def digest(self) -> str:
        """Of how long all pairs are, how much they count, and the token ids of a thousand of them, evenly spread."""
        found = xxhash.xxh3_128(np.asarray(self.row_lengths, np.int64).tobytes() + self.counts.numpy().tobytes())
        for place in sorted({n * len(self) // 1000 for n in range(1000)}):
            found.update(str(self.encoded[place]).encode())
        return found.hexdigest()

    def check_ids(self, tokenizer: Any, context: int | None = None) -> None:
        """ArgumentError where the first or the longest pair has other token ids by this tokenizer, within this context."""
        for place in {0, int(np.argmax(self.row_lengths))}:
            pair = self.pairs[place]
            if encode_pairs([pair], tokenizer, self.tokenisation.within(context)) != [self.encoded[place]]:
                raise ArgumentError(
                    f"{pair.origin or f'pair {place + 1}'}: the data hold other token ids than this model's tokenizer and "
                    "context make of it. Expected data of this model: make them with its tokenizer and a max_length it holds."
                )

    def batch(self, indices: Sequence[int]) -> Any:
        """The pairs at `indices`, with their `shares` [B]; a negative one, −1 − i, is pair i that fills without counting."""
        raise NotImplementedError

    def places(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """[B] int64 and [B] float64: which pairs they are, and how much each counts in the average."""
        given = torch.tensor(list(indices), dtype=torch.long)
        at = torch.where(given >= 0, given, -1 - given)
        return at, self.counts[at] * (given >= 0)


class PreferenceData(PairData):
    """P pairs, encoded and joined with their scores. Build it once and hand it to several trainers: it depends on no objective.

    Args:
        pairs, counts: as of `PairData`.
        scores: `SequenceScores` that cover them, joined by content key; the order of `scores.names` is the order of K.
        tokenizer: the policy's.
        tokenisation: what the scores were made with.
        too_long: pairs that the policy or a reference cuts, and not all to the very same tokens, are an error ("refuse"), or
            left out with one warning that says how many ("drop"; `dropped` counts them).

    Raises:
        StoreError: pairs without scores (how many, an example, what to do).
        ArgumentError: pairs that are cut, as `too_long` says; scores made with another end or join.
        DataError: a row that cannot be encoded, named.
    """

    def __init__(
        self,
        pairs: Sequence[Any],
        scores: SequenceScores,
        tokenizer: Any,
        *,
        tokenisation: Tokenisation = TOKENISATION,
        counts: Sequence[float] | Tensor | None = None,
        too_long: Literal["refuse", "drop"] = "refuse",
    ) -> None:
        check_choice("too_long", too_long, ("refuse", "drop"))
        scores.agree_on(tokenisation)
        super().__init__(pairs, tokenizer, tokenisation, counts)
        _check_ends(self.pairs, scores, tokenizer, tokenisation)
        self.names, self.identities, self.said = scores.names, scores.identities, tokenisation.identity()
        self.scores, self.columns = scores, torch.from_numpy(scores.pair_columns(self.pairs))
        self.otherwise = _scored_otherwise(self.encoded, scores, self.columns)
        rows, cut = _cut(self.encoded, scores, self.columns)
        if len(rows) and (too_long != "drop" or len(rows) == len(self)):
            _refuse(self, scores, rows, cut)
        self.dropped = len(rows)
        if self.dropped:
            kept = torch.ones(len(self), dtype=torch.bool)
            kept[rows] = False
            self._keep(kept.nonzero()[:, 0])

    def _keep(self, at: Tensor) -> None:
        """Only the pairs at these places. Says how many were left out."""
        warnings.warn(
            f"Left out {self.dropped:,} of {len(self):,} pairs that are cut on one side.", MultirefWarning, stacklevel=3
        )
        self.pairs, self.encoded = select(self.pairs, at.numpy()), select(self.encoded, at.numpy())
        self.counts, self.columns = self.counts[at], self.columns[at]

    def batch(self, indices: Sequence[int]) -> PairBatch:
        """The pairs at `indices` with their scores; a negative one, −1 − i, is pair i that fills without counting."""
        at, shares = self.places(indices)
        encoded = tuple(self.encoded[i] for i in at.tolist())
        columns = self.columns[at]
        return PairBatch(encoded, self.scores.at("logps", columns), self.scores.at("lengths", columns), shares)


def collate(items: Sequence[tuple[PairData, int]]) -> dict[str, Any]:
    """Items of one dataset → {"index": [B] int64, "pairs": its batch of them}."""
    data = items[0][0]
    indices = [index for _, index in items]
    return {"index": torch.tensor(indices), "pairs": data.batch(indices)}


def _encoded(pairs: Sequence[Pair], tokenizer: Any, tokenisation: Tokenisation) -> Sequence[Encoded]:
    """The ids of all pairs: in memory, or where the pairs are."""
    if not isinstance(pairs, SpooledPairs):
        return encode_pairs(pairs, tokenizer, tokenisation)
    parts = (encode_pairs(pairs[start : start + PART], tokenizer, tokenisation) for start in range(0, len(pairs), PART))
    return EncodedRows.write((item for part in parts for item in part), pairs)


def encode_pairs(pairs: Sequence[Pair], tokenizer: Any, tokenisation: Tokenisation) -> list[Encoded]:
    """Each pair as `models.encode` has it. Errors name the pair: one that cannot be encoded, or whose two sides are the same
    tokens, so that it says nothing about preference."""
    texts = [(pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs]
    origins = [pair.origin or f"pair {number}" for number, pair in enumerate(pairs, 1)]
    encoded = encode_many(tokenizer, texts, tokenisation, origins=origins)
    for pair, origin, item in zip(pairs, origins, encoded):
        same = item.completions[0] == item.completions[1] and item.context(0) == item.context(1)
        if same and pair.chosen != pair.rejected and not any(item.truncated):
            raise DataError(
                f"{origin}: chosen and rejected are different texts and become the same tokens, so the row says nothing about "
                "preference. The tokenizer or the chat template deletes what tells them apart; remove the row, or use another."
            )
        check_one_prompt(item, origin)
    return encoded


def _cut(encoded: Sequence[Encoded], scores: SequenceScores, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs [R] that the policy or a reference has cut, unless both kept the very same tokens of both sides; and [K, R] bool,
    for which references that is so."""
    if isinstance(encoded, EncodedRows):
        ours = torch.from_numpy(encoded.truncated)
    else:
        ours = torch.tensor([item.truncated for item in encoded])
    found = [torch.empty(len(scores.names), 0, dtype=torch.bool)]
    rows = (ours | scores.cut[columns]).any(-1).nonzero()[:, 0]
    for part in rows.split(PART):
        cut, digests = scores.at("truncated", columns[part]) | ours[part], scores.at("digests", columns[part])
        kept = torch.tensor([[_signed(encoded[row].digest(side)) for side in (0, 1)] for row in part.tolist()]).reshape(-1, 2)
        found.append((cut & ((digests != kept) | (digests == 0))).any(-1))
    differ = torch.cat(found, dim=1)
    return rows[differ.any(0)], differ[:, differ.any(0)]


def _check_ends(pairs: Sequence[Pair], scores: SequenceScores, tokenizer: Any, tokenisation: Tokenisation) -> None:
    """ArgumentError where the policy's template ends an answer and a reference's does not, or the other way."""
    if not tokenisation.end or all(isinstance(pair.prompt, str) for pair in pairs):
        return
    ours = not Chat.of(tokenizer, (), tokenisation).closes()
    for name, identity in zip(scores.names, scores.identities):
        if identity.get("kind") == "local" and bool(identity.get("unended")) != ours:
            who = ("the policy's", f"that of reference {name!r}")
            raise ArgumentError(
                f"The chat template of one side writes an end token behind an answer ({who[ours]}), the other's none "
                f"({who[not ours]}): the ratio would be of different texts. Give both a template that ends an answer, or "
                "score and train with end=False."
            )


def _scored_otherwise(encoded: Sequence[Encoded], scores: SequenceScores, columns: Tensor) -> tuple[int, ...]:
    """References that are known to have scored other token ids than the policy has: of eight rows, evenly spread."""
    rows = torch.linspace(0, len(encoded) - 1, min(8, len(encoded))).long().unique()
    ours = torch.tensor([[_signed(encoded[row].digest(side)) for side in (0, 1)] for row in rows.tolist()])
    theirs = scores.at("digests", columns[rows])
    return tuple(((theirs != ours) & (theirs != 0)).any((1, 2)).nonzero()[:, 0].tolist())


def _signed(digest: int) -> int:
    """64 bits as torch has them."""
    return digest - (1 << 64) if digest >> 63 else digest


def _refuse(data: PreferenceData, scores: SequenceScores, rows: Tensor, cut: Tensor) -> None:
    """A text that was cut and a whole one, or two that were cut elsewhere, are different texts: their log-probabilities do not
    belong in one ratio."""
    k, first = (int(i) for i in cut.nonzero()[0])
    row = int(rows[first])
    name, policy, columns = data.names[k], data.encoded[row], data.columns[row]
    marks = ((f"reference {name!r}", scores.at("truncated", columns)[k]), ("the policy", policy.truncated))
    where = " and for ".join(side for side, is_cut in marks if any(is_cut))
    lengths = f"{max(map(len, policy.completions))} tokens of its longer side under the policy"
    raise ArgumentError(
        f"{len(rows):,} of {len(data.pairs):,} pairs are cut differently by the policy and by the "
        f"references' scores; the first is {data.pairs[row].origin or f'pair {row + 1}'}, cut for {where} ({lengths}, "
        f"{int(scores.at('lengths', columns)[k].max())} under {name!r}). Expected the same tokens on all sides. Score again "
        "with the tokenisation of this run and a max_length that holds them, or leave these rows out: too_long='drop'."
    )
