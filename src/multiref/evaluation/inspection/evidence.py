"""The evidence that stored scores hold about preferences: margins, lengths, rates, and which pairs belong together."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from multiref.data import Pair
from multiref.data.text import Text, words
from multiref.errors import DataError
from multiref.references.scores import SequenceScores


@dataclass(frozen=True, eq=False)
class Evidence:
    """K references on P pairs.

    logps, lengths, truncated [K, P, 2]: chosen and rejected. characters [P, 2]. groups [P]: pairs of one prompt (capitals,
    spaces and marks at its end aside) have one number, 0 … G−1; without a prompt, those of the same two completions. They are
    never split between fitting and testing, and count as one cluster in every standard error. left_out: pairs scored −inf.
    """

    names: tuple[str, ...]
    logps: Tensor
    lengths: Tensor
    truncated: Tensor
    characters: Tensor
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


def gather(pairs: Sequence[Pair], scores: SequenceScores) -> Evidence:
    """Pairs and their scores → evidence. `StoreError` for a pair without scores, `DataError` where nothing is left."""
    prompts = [pair.prompt for pair in pairs]
    sides = [[getattr(pair, side) for pair in pairs] for side in ("chosen", "rejected")]
    columns = torch.stack([torch.from_numpy(scores.columns(prompts, side)) for side in sides], dim=-1)
    logps = scores.logps[:, columns].double()
    finite = torch.isfinite(logps).all(-1).all(0)
    if not finite.any():
        found = f"None of the {len(pairs)} pairs has finite scores under all of {', '.join(scores.names)}"
        raise DataError(f"{found}. Look at each reference alone.")
    asked = [_bare(prompt) for prompt in prompts]
    alone = len(set(asked)) == 1  # data without prompts: every pair stands for itself
    number: dict[object, int] = {}
    named = (prompt if prompt and not alone else frozenset(map(_bare, both)) for prompt, both in zip(asked, zip(*sides)))
    groups = torch.tensor([number.setdefault(name, len(number)) for name in named])
    characters = torch.tensor([[len(words(text)) for text in side] for side in sides]).T
    return Evidence(
        scores.names,
        logps[:, finite],
        scores.lengths[:, columns][:, finite],
        scores.truncated[:, columns][:, finite],
        characters[finite],
        torch.unique(groups[finite], return_inverse=True)[1],
        int((~finite).sum()),
    )
