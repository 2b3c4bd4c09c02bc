"""K models of one vocabulary, advanced together after one prompt, one cache each: what they say of the next token."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from multiref.models.architecture import evaluating
from multiref.models.encoding import Ids
from multiref.models.sampling import Reader
from multiref.models.spec import Generation


class Lockstep:
    """What K models say of the next token, for rows that began as one prompt.

    Rows are re-selected, every cache with them. tokens: so many were read, by all models together.
    """

    def __init__(self, models: Sequence[Any], context: Ids, rows: int, new_tokens: int) -> None:
        generation = Generation(new_tokens)
        self.readers = [Reader(model, [context], rows, generation, 0) for model in models]
        self.rows, self.tokens, self.device = rows, len(models) * len(context), self.readers[0].device
        self.patience = self.readers[0].patience
        self._logits = [reader.read_prompts() for reader in self.readers]

    def logps(self) -> Tensor:
        """[K, rows, V], float32 at least: log π_k of the next token."""
        width = min(logits.shape[-1] for logits in self._logits)  # beyond it: rows that only pad a vocabulary
        each = [logits[..., :width].to(torch.promote_types(logits.dtype, torch.float32)) for logits in self._logits]
        return torch.stack([logits.log_softmax(-1).to(self.device) for logits in each])

    def read(self, tokens: Tensor) -> None:
        """One more token of each row."""
        self._logits = [reader.read(tokens.to(reader.device)) for reader in self.readers]
        self.tokens += len(self.readers) * self.rows

    def keep(self, rows: Tensor) -> None:
        """These rows go on, in this order; one may go on more than once. To be called before `read`."""
        for reader in self.readers:
            reader.keep(rows.to(reader.device))
        self.rows = len(rows)


@contextmanager
def at_rest(models: Sequence[Any]) -> Iterator[None]:
    """Evaluation mode, nothing recorded for gradients."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        for model in models:
            stack.enter_context(evaluating(model))
        yield


def cache_bytes(models: Sequence[Any], rows: int, length: int) -> int:
    """Of so many rows of so many tokens, in all caches, and the logits of one step; 0 of a model whose configuration does not
    say."""
    total = 0
    for model in models:
        config = model.config.get_text_config()
        heads = getattr(config, "num_attention_heads", None) or 0
        kept = getattr(config, "num_key_value_heads", None) or heads
        width = getattr(config, "head_dim", None) or (getattr(config, "hidden_size", 0) or 0) // max(heads, 1)
        size = next(model.parameters()).element_size()
        cached = 2 * (getattr(config, "num_hidden_layers", 0) or 0) * kept * width * length * size
        total += rows * (cached + 3 * 4 * int(getattr(config, "vocab_size", 0) or 0))
    return total
