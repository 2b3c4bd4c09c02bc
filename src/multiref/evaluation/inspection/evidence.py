"""The evidence that stored scores hold about preferences: margins, lengths, rates, and which pairs belong together."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from multiref.data import Pair
from multiref.data.text import Text, words
from multiref.errors import DataError
from multiref.references.scores import SequenceScores


@dataclass(frozen=True, eq=False)
class Evidence:
    """K references on P pairs.

    logps, lengths, truncated [K, P, 2]: chosen and rejected. groups [P]: pairs of one prompt (capitals, spaces and marks at its
    end aside) have one number, 0 … G−1; without a prompt, those of the same two completions. They are never split between
    fitting and testing, and count as one cluster in every standard error. left_out: pairs scored −inf.
    """

    names: tuple[str, ...]
    logps: Tensor
    lengths: Tensor
    truncated: Tensor
    groups: Tensor
    left_out: int

    @property
    def margins(self) -> Tensor:
        """[K, P]: log π_k(chosen) − log π_k(rejected), summed over completions."""
        return self.logps[..., 0] - self.logps[..., 1]

    @property
    def longer(self) -> Tensor:
        """[K, P]: tokens of chosen less tokens of rejected."""
        return (self.lengths[..., 0] - self.lengths[..., 1]).double()

    @property
    def rates(self) -> Tensor:
        """[K, 2P]: nats per token of each completion."""
        return (-self.logps / self.lengths.clamp_min(1)).flatten(1)

    @property
    def pairs(self) -> int:
        """P."""
        return self.logps.shape[1]


def _bare(text: Text) -> str:
    """What was said, less what makes no other question of it."""
    return "".join(words(text).casefold().split()).rstrip(".?!")


def _key(pair: Pair, alone: bool) -> int:
    """The same for pairs of one prompt; without a prompt, for those of the same two completions."""
    prompt = _bare(pair.prompt)
    said = prompt if prompt and not alone else sorted({_bare(pair.chosen), _bare(pair.rejected)})
    return int.from_bytes(blake2b(repr(said).encode("utf-8", "surrogatepass"), digest_size=8).digest())


def gather(pairs: Sequence[Pair], scores: SequenceScores) -> Evidence:
    """Pairs and their scores → evidence. `StoreError` for a pair without scores, `DataError` where nothing is left."""
    columns = torch.from_numpy(scores.pair_columns(pairs))
    logps = scores.at("logps", columns).double()
    finite = torch.isfinite(logps).all(-1).all(0)
    if not finite.any():
        found = f"None of the {len(pairs)} pairs has finite scores under all of {', '.join(scores.names)}"
        raise DataError(f"{found}. Look at each reference alone.")
    first = _bare(pairs[0].prompt)
    alone = all(_bare(pair.prompt) == first for pair in pairs)  # data without prompts: every pair stands for itself
    keys = np.fromiter((_key(pair, alone) for pair in pairs), np.uint64, len(pairs))
    _, earliest, number = np.unique(keys, return_index=True, return_inverse=True)
    groups = torch.from_numpy(np.argsort(np.argsort(earliest))[number])  # as they come
    return Evidence(
        scores.names,
        logps[:, finite],
        scores.at("lengths", columns)[:, finite],
        scores.at("truncated", columns)[:, finite],
        torch.unique(groups[finite], return_inverse=True)[1],
        int((~finite).sum()),
    )
