"""The per-token pool inside transformers' `generate`: other models beside the one that generates."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from multiref._logspace import check_weights, weighted_sum
from multiref.errors import ArgumentError, MultirefWarning, VocabularyMismatch
from multiref.models.architecture import cache_argument, cache_of, takes
from multiref.pools import power_pool


class PoolLogitsProcessor(LogitsProcessor):
    r"""Scores of the next token → log P_ρ of all models, normalised: `models[0].generate(…, logits_processor=[this])`.

    The pool of tokens, not of completions (docs/decoding.md). The other models have caches of their own, which follow rows that
    are reordered (beams); where a row is no continuation of one of the step before (a new call) all are read again.

    Args:
        models: the one that generates, then the others, of one vocabulary. weights: [K] on the simplex; None is uniform.
        attention_mask: of the prompt batch, which a processor never sees: needed where rows are padded.
        order: ρ of the pool; 0 is geometric.

    Pass `top_k=0` to `generate`, which cuts to 50 tokens otherwise. A MultirefWarning where the model's own generation settings
    bend the pool, or something cut the scores before it.
    """

    def __init__(
        self, models: Sequence[Any], weights: Any = None, *, attention_mask: Tensor | None = None, order: float = 0.0
    ) -> None:
        if not models or not math.isfinite(order):
            raise ArgumentError(
                f"models, order: expected a model and a finite ρ, found {len(models)} models and order {order}."
            )
        self.others, self.weights = list(models[1:]), check_weights(weights, len(models))
        self.mask, self.order = attention_mask, order
        widths = {model.config.get_text_config().vocab_size for model in models}
        if len(widths) > 1:
            raise VocabularyMismatch(f"models: expected one vocabulary, found sizes {sorted(widths)}.")
        own = models[0].generation_config
        bent = {name: getattr(own, name, None) for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")}
        said = {name: value for name, value in bent.items() if value not in (None, 0, 1, 1.0, 0.0)}
        if said:
            warnings.warn(
                f"The model's generation settings bend what is drawn from the pool ({said}); pass other values to generate.",
                MultirefWarning,
                stacklevel=2,
            )
        self._takes = [takes(model) for model in self.others]
        self._devices = [next(model.parameters()).device for model in self.others]
        self._ids = torch.empty(0, 0, dtype=torch.long)
        self._caches: list[Any] = []

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """[B, T], [B, V] → [B, V]."""
        if not self._follow(input_ids):
            self._caches = [None] * len(self.others)
            if bool(torch.isinf(scores).any()):
                warnings.warn(
                    "Scores were cut before they were pooled: use no top_k, top_p, min_p.", MultirefWarning, stacklevel=2
                )
        mask = self._whole_mask(input_ids)
        others = [self._said(k, input_ids, mask).to(scores) for k in range(len(self.others))]
        self._ids, weights = input_ids.clone(), self.weights.to(scores)
        if self.order == 0:  # what each is normalised by cancels
            pool = weighted_sum(torch.stack([scores, *others]), weights[:, None, None])
        else:
            pool = power_pool(torch.stack([scores, *others]).log_softmax(-1), weights, self.order)
        return pool.log_softmax(-1)  # beams add them up

    def _follow(self, ids: Tensor) -> bool:
        """The caches, brought to the rows that these go on from; False where some row goes on from none."""
        before = self._ids.to(ids.device)
        if before.shape != ids[:, :-1].shape or torch.equal(before, ids[:, :-1]):
            return before.shape == ids[:, :-1].shape
        same = (ids[:, None, :-1] == before).all(-1)  # [B, B]
        if self.mask is not None:  # rows of different prompts may look alike, and be padded differently
            prompt = torch.arange(len(ids), device=ids.device) * len(self.mask) // len(ids)
            same &= prompt[:, None] == prompt
        kept = [cache for cache in self._caches if cache is not None]
        if not bool(same.any(-1).all()) or not all(hasattr(cache, "reorder_cache") for cache in kept):
            return False
        for cache, device in zip(self._caches, self._devices):
            if cache is not None:
                cache.reorder_cache(same.int().argmax(-1).to(device))
        return True

    @torch.inference_mode()
    def _said(self, k: int, ids: Tensor, mask: Tensor | None) -> Tensor:
        """[B, V]: logits of the next token under one of the others."""
        model, names, cache = self.others[k], self._takes[k], self._caches[k]
        device = self._devices[k]
        new = ids if cache is None else ids[:, -1:]
        inputs: dict[str, Any] = {"input_ids": new.to(device), "use_cache": True}
        if mask is not None:
            inputs["attention_mask"] = mask.to(device)
            if "position_ids" in names:
                inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp_min(0)[:, -new.shape[1] :]
        if "logits_to_keep" in names:
            inputs["logits_to_keep"] = 1
        out = model(**inputs, **cache_argument(names, cache))
        self._caches[k] = cache_of(out)
        logits: Tensor = out.logits[:, -1].float()
        return logits

    def _whole_mask(self, ids: Tensor) -> Tensor | None:
        """[B, T]; None where nothing is padded, and positions are those that the model counts itself."""
        if self.mask is None:
            return None
        each, left = divmod(len(ids), len(self.mask))
        if left or ids.shape[1] < self.mask.shape[1]:
            raise ArgumentError(f"attention_mask: {tuple(self.mask.shape)} is not of the prompts of rows {tuple(ids.shape)}.")
        mask = self.mask.to(ids).repeat_interleave(each, 0)
        return torch.cat([mask, torch.ones_like(ids[:, mask.shape[1] :])], 1)
