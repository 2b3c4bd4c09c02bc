"""Scores: log-probabilities of completions under K references. The one door between models and mathematics.

Two levels, two types that cannot be confused. `SequenceScores` holds one number per completion and reference, summed over the
tokens of that reference's own tokenizer, so it works across tokenizers. `TokenScores` holds one number per token and exists
only where all vocabularies are the same mapping.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from multiref.errors import ArgumentError, StoreError, VocabularyMismatch
from multiref.models.spec import Tokenisation
from multiref.references.keys import KeyIndex, content_key, content_keys, side_keys, text_of
from multiref.references.mapped import let_go
from multiref.report.shown import excerpt

__all__ = ["SequenceScores", "TokenScores", "check_names", "content_key", "content_keys", "same_vocabulary"]

PART = 2**16  # pairs whose keys are looked for at once


@dataclass(frozen=True, eq=False)
class SequenceScores:
    """Log-probabilities of N completions under K references, each summed over the completion.

    Args:
        names: K different names of the references.
        keys: [N] content keys (dtype V16), all different, in any order.
        logps: [K, N] float64, natural log of π_k(completion | prompt), end token included unless the scorer was told otherwise.
        lengths: [K, N] int64, how many tokens were scored, in each reference's own tokenizer.
        truncated: [K, N] bool, where the reference's context did not hold the whole text.
        digests: [K, N] uint64, `Encoded.digest` of the token ids that were scored; 0 where they are not known.
        identities: [K] what each was computed by, and from where; nothing where that is not known.
        mapped: those of these arrays that may be on disk.

    Joined to data by content key, never by position: `of` and `of_pairs`.
    """

    names: tuple[str, ...]
    keys: np.ndarray
    logps: Tensor
    lengths: Tensor
    truncated: Tensor
    digests: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    identities: tuple[Mapping[str, Any], ...] = ()
    mapped: tuple[np.ndarray, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        check_names(self.names)
        expected = (len(self.names), len(self.keys))
        if not self.digests.size:
            object.__setattr__(self, "digests", np.zeros(expected, np.uint64))
        for what in ("logps", "lengths", "truncated", "digests"):
            found = tuple(getattr(self, what).shape)
            if found != expected:
                raise ArgumentError(
                    f"{what} has shape {found}; expected [K, N] = {expected} from {expected[0]} names and {expected[1]} keys."
                )
        if self._index.repeated.any():
            raise ArgumentError(
                "A content key occurs twice in these scores; each completion has one score per reference. Drop the duplicates."
            )

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        return f"SequenceScores({len(self.keys):,} completions × {len(self.names)} references: {', '.join(self.names)})"

    @cached_property
    def _index(self) -> KeyIndex:
        return KeyIndex(self.keys, between=partial(let_go, self.mapped))

    def locate(self, keys: np.ndarray) -> np.ndarray:
        """[M] keys → [M] columns of `logps`; −1 where there is no score."""
        return self._index.locate(keys)

    def at(self, what: Literal["logps", "lengths", "truncated", "digests"], columns: Tensor) -> Tensor:
        """[*E] columns → [K, *E]: what was stored of these completions; digests as int64, which torch can compare."""
        values: Tensor = torch.from_numpy(self.digests.view(np.int64)) if what == "digests" else getattr(self, what)
        found = values.new_empty(len(self.names), *columns.shape)
        for k, row in enumerate(values):
            found[k] = row[columns]
            let_go(self.mapped)
        return found

    @cached_property
    def cut(self) -> Tensor:
        """[N] bool: completions that some reference's context did not hold whole."""
        found = torch.zeros(len(self.keys), dtype=torch.bool)
        for row in self.truncated:
            found |= row
            let_go(self.mapped)
        return found

    def columns(self, prompts: Sequence[Any], completions: Sequence[Any]) -> np.ndarray:
        """Texts [M] → columns [M]. Raises `StoreError` where a text has no score: how many, an example, and what to do."""
        return self._there(self.locate(content_keys(prompts, completions)), lambda at: (prompts[at], completions[at]))

    def pair_columns(self, pairs: Sequence[Any]) -> np.ndarray:
        """P pairs → columns [P, 2]: of their chosen and rejected completions. `StoreError` as `columns`."""
        parts = (pairs[start : start + PART] for start in range(0, len(pairs), PART))
        columns = np.concatenate([np.empty(0, np.int32), *(self.locate(side_keys(part).reshape(-1)) for part in parts)])
        sides = ("chosen", "rejected")
        self._there(columns, lambda at: (pairs[at // 2].prompt, getattr(pairs[at // 2], sides[at % 2])), of=2)
        return columns.reshape(-1, 2)

    def _there(self, columns: np.ndarray, text: Callable[[int], tuple[Any, Any]], of: int = 1) -> np.ndarray:
        missing = np.flatnonzero(columns < 0)
        if len(missing):
            at = int(missing[0])
            prompt, completion = (excerpt(each if isinstance(each, str) else text_of(each)) for each in text(at))
            raise StoreError(
                f"{len(missing):,} of {len(columns):,} completions have no score under {', '.join(self.names)}; the first is "
                f"row {at // of + 1}, prompt {prompt}, completion {completion}. Expected one score each. "
                "Score this data first (References(...).score(pairs, store=...), or `multiref score`); a changed text, even "
                "by a space, is another text."
            )
        return columns

    def of(self, prompts: Sequence[Any], completions: Sequence[Any]) -> Tensor:
        """Texts [M] → [K, M] float64: their scores, in the order asked."""
        return self.at("logps", torch.from_numpy(self.columns(prompts, completions)))

    def of_pairs(self, pairs: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """P pairs → (chosen [K, P], rejected [K, P]), in the order of the pairs."""
        chosen, rejected = self.at("logps", torch.from_numpy(self.pair_columns(pairs))).unbind(-1)
        return chosen, rejected

    def select(self, names: Sequence[str]) -> "SequenceScores":
        """The scores of these references only, in this order."""
        unknown = [name for name in names if name not in self.names]
        if unknown:
            raise ArgumentError(
                f"No reference is called {unknown[0]!r} in these scores; there are {', '.join(map(repr, self.names))}."
            )
        rows = [self.names.index(name) for name in names]
        logps, lengths, truncated = self.logps[rows], self.lengths[rows], self.truncated[rows]
        known = tuple(self.identities[row] for row in rows) if self.identities else ()
        return SequenceScores(tuple(names), self.keys, logps, lengths, truncated, digests=self.digests[rows], identities=known)

    @property
    def conventions(self) -> list[dict[str, Any]]:
        """[K] what both halves of a ratio must agree on ("end", "join"), as far as it is known."""
        identities = self.identities or ({},) * len(self.names)
        ours = (identity if "scoring_version" in identity else {} for identity in identities)
        return [{what: identity[what] for what in ("end", "join") if what in identity} for identity in ours]

    def agree_on(self, tokenisation: Tokenisation) -> None:
        """ArgumentError where a reference is known to have been scored by another convention: with the end token or without, or
        joined in another way. Then its log-probabilities are of other events than the policy's."""
        for name, convention in zip(self.names, self.conventions):
            for what, value in convention.items():
                if value != (ours := getattr(tokenisation, what)):
                    raise ArgumentError(
                        f"Reference {name!r} was scored with {what}={value!r}, and the policy is to be with {what}={ours!r}; "
                        "the two halves of a ratio need one convention. Give both one Tokenisation."
                    )


@dataclass(frozen=True, eq=False)
class TokenScores:
    """Log-probabilities of the tokens of N completions under K references that share one vocabulary.

    Completion n has the tokens offsets[n] : offsets[n + 1] of the last axis.

    Args:
        names: K different names.
        keys: [N] content keys (dtype V16).
        offsets: [N + 1] int64, from 0 to T.
        token_logps: [K, T] float, log π_k(token | prompt and earlier tokens).

    The vocabularies must be the same mapping, not merely of the same size (`same_vocabulary`).
    """

    names: tuple[str, ...]
    keys: np.ndarray
    offsets: Tensor
    token_logps: Tensor

    def __post_init__(self) -> None:
        check_names(self.names)
        if len(self.offsets) != len(self.keys) + 1:
            raise ArgumentError(f"offsets has {len(self.offsets)} entries; expected N + 1 = {len(self.keys) + 1}.")
        expected = (len(self.names), int(self.offsets[-1]))
        if tuple(self.token_logps.shape) != expected:
            raise ArgumentError(f"token_logps has shape {tuple(self.token_logps.shape)}; expected [K, T] = {expected}.")

    def summed(self) -> Tensor:
        """[K, N] float64: the sums over each completion."""
        owner = torch.arange(len(self.keys)).repeat_interleave(self.offsets.diff())
        totals = torch.zeros(len(self.names), len(self.keys), dtype=torch.float64)
        return totals.index_add(1, owner, self.token_logps.double())


def same_vocabulary(names: Sequence[str], vocabularies: Sequence[Mapping[str, int]]) -> None:
    """Raise `VocabularyMismatch`, naming the first difference, unless all vocabularies are the same mapping from token to id.

    Rows of an embedding that no token uses (padding of the matrix, as in Qwen2.5 7B against 3B) are not part of the mapping and
    do not matter.
    """
    first_name, first = names[0], vocabularies[0]
    for name, vocabulary in zip(names[1:], vocabularies[1:], strict=True):
        if vocabulary == first:
            continue
        by_id, other = ({index: token for token, index in v.items()} for v in (first, vocabulary))
        index = min(i for i in by_id.keys() | other.keys() if by_id.get(i) != other.get(i))
        raise VocabularyMismatch(
            f"References {first_name!r} and {name!r} have different vocabularies: id {index} is {by_id.get(index)!r} in the "
            f"first and {other.get(index)!r} in the second. Token-level scores need the same mapping; sequence-level scores "
            "work across tokenizers."
        )


def check_names(names: Sequence[str]) -> None:
    """ArgumentError unless there is a name, and none twice."""
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated:
        raise ArgumentError(f"Two references are called {repeated[0]!r}; expected different names. Rename one of them.")
    if not names:
        raise ArgumentError("No reference was given; expected at least one, as {name: path, hub id, URL or object}.")
