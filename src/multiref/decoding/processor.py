"""The per-token pool inside transformers' `generate`: other models beside the one that generates."""

import inspect
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import LogitsProcessor

from multiref._logspace import weighted_sum
from multiref.decoding.request import flat_weights
from multiref.errors import ArgumentError, MultirefWarning, VocabularyMismatch
from multiref.models.sampling import Reader
from multiref.models.spec import Generation
from multiref.pools import power_pool

# what makes tokens impossible, or normalises, and leaves the law of the other tokens as it is
_FORBIDDING = tuple(
    getattr(transformers, name)
    for name in (
        "ForcedBOSTokenLogitsProcessor",
        "ForcedEOSTokenLogitsProcessor",
        "InfNanRemoveLogitsProcessor",
        "LogitNormalization",
        "MinLengthLogitsProcessor",
        "MinNewTokensLengthLogitsProcessor",
        "NoBadWordsLogitsProcessor",
        "NoRepeatNGramLogitsProcessor",
        "PrefixConstrainedLogitsProcessor",
        "SuppressTokensAtBeginLogitsProcessor",
        "SuppressTokensLogitsProcessor",
    )
)


class PoolLogitsProcessor(LogitsProcessor):
    r"""Scores of the next token → log P_ρ of all models, normalised: `models[0].generate(…, logits_processor=[this])`.

    The pool of tokens, not of completions (docs/decoding.md). The other models have caches of their own, which follow rows that
    are reordered (beams), unless the first step behind shows that they do not; where a row is no continuation of one of the
    step before (a new call) all are read again. A token
    that was forbidden before (`min_new_tokens`, say) stays forbidden, and the rest has the pool's law given that, as in
    `sample(method="token")`. For ρ other than 0 that takes what the first model gave to such tokens, which scores do not say:
    it is then read here too.

    Args:
        models: the one that generates, then the others, of one vocabulary. weights: [K] on the simplex; None is uniform.
        attention_mask: of the prompt batch, which a processor never sees: needed where rows are padded.
        order: ρ of the pool; 0 is geometric.

    Pass `top_k=0` to `generate`, which cuts to 50 tokens otherwise. A MultirefWarning names what else `generate` does to the
    scores: temperature, cuts, penalties. ArgumentError for padded rows without a mask, and for a mask of other prompts.
    """

    def __init__(
        self, models: Sequence[Any], weights: Any = None, *, attention_mask: Tensor | None = None, order: float = 0.0
    ) -> None:
        if not models or not math.isfinite(order):
            raise ArgumentError(
                f"models, order: expected a model and a finite ρ, found {len(models)} models and order {order}."
            )
        self.models, self.weights = list(models), flat_weights(weights, len(models))
        self._full = bool((self.weights > 0).all())
        self.mask, self.order = attention_mask, order
        if wrong := [each for each in models if not hasattr(each, "config")]:
            raise ArgumentError(f"models: found {wrong[0]!r}; expected models as transformers has them: `load(path).model`.")
        if not isinstance(attention_mask, Tensor | None) or (attention_mask is not None and attention_mask.ndim != 2):
            raise ArgumentError(f"attention_mask: expected a tensor [rows, tokens], found {attention_mask!r}.")
        widths = {model.config.get_text_config().vocab_size for model in models}
        if len(widths) > 1:
            raise VocabularyMismatch(f"models: expected one vocabulary, found sizes {sorted(widths)}.")
        self._pad = getattr(models[0].generation_config, "pad_token_id", None)
        if self._pad is None:
            self._pad = models[0].config.get_text_config().pad_token_id
        self._ids = self._prompts = torch.empty(0, 0, dtype=torch.long)
        self._readers: list[Reader | None] = []

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """[B, T], [B, V] → [B, V]."""
        if not self._follow(input_ids):
            self._readers = [None] * len(self.models)
            self._begin(input_ids)
        others = [self._said(k, input_ids).to(scores) for k in range(1, len(self.models))]
        forbidden, weights = scores == -torch.inf, self.weights.to(scores)
        if self.order == 0:  # what each is normalised by cancels
            pool = weighted_sum(torch.stack([scores, *others]), weights[:, None, None], self._full)
        else:
            first = scores.log_softmax(-1)
            if bool(forbidden.any()):
                own = self._said(0, input_ids).to(scores).log_softmax(-1)
                first = first + own.masked_fill(forbidden, -torch.inf).logsumexp(-1, keepdim=True)
            else:
                self._readers[0] = None
            pool = power_pool(torch.stack([first, *(each.log_softmax(-1) for each in others)]), weights, self.order)
        self._ids = input_ids.clone()
        return pool.masked_fill(forbidden, -torch.inf).log_softmax(-1)  # beams add them up

    def _begin(self, ids: Tensor) -> None:
        """ArgumentError for prompts that the others would read otherwise than the first; says what else bends the scores."""
        if not ids.shape[1]:
            raise ArgumentError("generate was given embeddings; the other models need token ids (input_ids).")
        if self.mask is None:
            apart = (ids != self._pad).int().cumsum(-1).eq(0).sum(-1) if self._pad is not None else ids.new_zeros(1)
            if int(apart.max()) > min(1, int(apart.min())):  # a single one may be a start token
                raise ArgumentError("attention_mask: rows are padded; pass the mask of the prompts, which generate does not.")
        else:
            width = self.mask.shape[1]
            if ids.shape[1] == width:
                self._prompts = ids.clone()
            hidden = ids[:, :width][_whole(self.mask, ids)[:, :width] == 0]
            begun = self._prompts.shape[1] == width and torch.equal(ids[:, :width].unique(dim=0), self._prompts.unique(dim=0))
            if not begun or len(hidden.unique()) > 1:
                raise ArgumentError("attention_mask: it is not of these prompts; make a processor for each batch.")
        bent = [type(each).__name__ for each in _beside(self) if not isinstance(each, _FORBIDDING)]
        if bent:
            warnings.warn(
                f"generate bends what is drawn from the pool: {', '.join(bent)}. Pass top_k=0, temperature=1 and no penalties.",
                MultirefWarning,
                stacklevel=2,
            )

    def _follow(self, ids: Tensor) -> bool:
        """The caches, brought to the rows that these go on from; False where some row goes on from none."""
        before = self._ids.to(ids.device)
        if before.shape != ids[:, :-1].shape or torch.equal(before, ids[:, :-1]):
            return before.shape == ids[:, :-1].shape
        same = (ids[:, None, :-1] == before).all(-1)  # [B, B]
        if self.mask is not None:  # rows of different prompts may look alike, and be padded differently
            prompt = torch.arange(len(ids), device=ids.device) * len(self.mask) // len(ids)
            same &= prompt[:, None] == prompt
        if not bool(same.any(-1).all()):
            return False
        for reader in filter(None, self._readers):
            reader.keep(same.int().argmax(-1).to(reader.device))
        return True

    @torch.inference_mode()
    def _said(self, k: int, ids: Tensor) -> Tensor:
        """[B, V]: logits of the next token under one of the models."""
        if (reader := self._readers[k]) is not None:
            return reader.read(ids[:, -1].to(reader.device)).float()
        shown = torch.ones_like(ids) if self.mask is None else _whole(self.mask, ids)
        rows = [tuple(row[told].tolist()) for row, told in zip(ids, shown.bool())]
        self._readers[k] = reader = Reader(self.models[k], rows, 1, Generation(1), 0)
        return reader.read_prompts().float()


def _whole(mask: Tensor, ids: Tensor) -> Tensor:
    """[B, T]: the mask of the prompts, for every row, and what was drawn behind them."""
    each, left = divmod(len(ids), len(mask))
    if left or ids.shape[1] < mask.shape[1]:
        raise ArgumentError(
            f"attention_mask: {tuple(mask.shape)} is not of the prompts of rows {tuple(ids.shape)}. "
            "Expected the mask of the batch that `generate` was given, one row a prompt."
        )
    return torch.cat([mask.to(ids).repeat_interleave(each, 0), torch.ones_like(ids[:, mask.shape[1] :])], 1)


def _beside(processor: LogitsProcessor) -> list[Any]:
    """The others in the list that `generate` runs: no one is told of them, so they are read off the list that called."""
    frame = inspect.currentframe()
    while frame is not None:
        calling = frame.f_locals.get("self")
        if isinstance(calling, list) and any(each is processor for each in calling):
            return [each for each in calling if each is not processor]
        frame = frame.f_back
    return []
