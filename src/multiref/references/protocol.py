"""What a reference is: something that says who it is, and scores text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from multiref.data import Text
from multiref.models.encoding import Encoded


@dataclass(frozen=True)
class Item:
    """A prompt and all completions of it that are wanted: they share its row where the model can do that.

    origin: the rows that ask for them ("pairs.jsonl:12"), for messages.
    """

    prompt: Text
    completions: tuple[Text, ...]
    origin: str = field(default="", compare=False)


@dataclass(frozen=True)
class Scored:
    """Scores of n completions, in the order in which the items name them.

    logps:     [n] float64, log π(completion | prompt) in nats, summed over the completion's tokens
    lengths:   [n] int64, number of tokens summed (with the end token where it is scored)
    truncated: [n] bool, True where the context or `max_length` cut something off the prompt or the completion
    digests:   [n] uint64, `Encoded.digest` of what was scored; None where nobody here saw the token ids
    halved:    tokens of one forward pass, where memory ran out and fewer were taken than otherwise; else 0
    """

    logps: Tensor
    lengths: Tensor
    truncated: Tensor
    digests: np.ndarray | None = None
    halved: int = 0

    @classmethod
    def of(cls, logps: Tensor, encoded: Sequence[Encoded], *, halved: int = 0) -> "Scored":
        """The scores of all completions of these, lengths and cuts as they were encoded."""
        lengths = [len(ids) for item in encoded for ids in item.completions]
        cut = [cut for item in encoded for cut in item.truncated]
        digests = np.array([item.digest(i) for item in encoded for i in range(len(item.completions))], np.uint64)
        counts, cuts = torch.tensor(lengths, dtype=torch.int64), torch.tensor(cut, dtype=torch.bool)
        return cls(logps.double(), counts, cuts, digests, halved)


@runtime_checkable
class Reference(Protocol):
    """Two methods. A reference that holds something large may also have `release()`, which frees it until the next `score`."""

    def identity(self) -> Mapping[str, Any]:
        """All that the scores depend on beside the text, and nothing else; JSON-able.

        Weights, configuration, tokenizer, chat template, adapter, dtype, truncation, end, scoring version; not the path, the
        batch size or the shape of a device batch. Scores are stored under it: two references with equal identities share them.
        """
        ...

    def score(self, items: Sequence[Item]) -> Scored:
        """The scores of every completion of every item. The same text gets the same score in any company (to rounding)."""
        ...
