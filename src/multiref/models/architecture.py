"""What a model allows: a head apart from its body, a prompt shared by its completions. Found by trying, once per model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from multiref.errors import ModelError
from multiref.models.encoding import Encoded
from multiref.models.rows import Rows, lay_out

__all__ = ["Layout", "layout_of", "unwrapped"]

_log = logging.getLogger("multiref")
_known: WeakKeyDictionary[nn.Module, Layout] = WeakKeyDictionary()


@dataclass(frozen=True)
class Layout:
    """head: logits are the output embedding of the last hidden state and nothing more, so that it may be applied to some
    positions only. shared_prompt: position ids and a 4-D mask are honoured. vocabulary: width of the logits. why: what failed."""

    head: bool
    shared_prompt: bool
    vocabulary: int
    why: str = ""


Forward = Callable[[nn.Module, Rows, Layout, int], Tensor]


def layout_of(model: nn.Module, forward: Forward) -> Layout:
    """The layout that gives the same log-probabilities as plain logits of separate rows, tried on one small batch.

    `forward(model, rows, layout, budget)` computes token log-probabilities [n]. What does not agree is not used, and a log
    message says so. Errors: ModelError for a model that is no causal language model.
    """
    model = unwrapped(model)
    if model not in _known:
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                _known[model] = _probe(model, forward)
        finally:
            model.train(training)
        if _known[model].why:
            _log.warning("%s: %s", type(model).__name__, _known[model].why)
    return _known[model]


def unwrapped(model: Any) -> Any:
    """The model inside DistributedDataParallel and torch.compile."""
    while True:
        inner = getattr(model, "_orig_mod", None) or (
            model.module if type(model).__name__ == "DistributedDataParallel" else None
        )
        if inner is None:
            return model
        model = inner


def _probe(model: Any, forward: Forward) -> Layout:
    vocabulary = _logit_width(model)
    plain = Layout(head=False, shared_prompt=False, vocabulary=vocabulary)
    if not hasattr(model, "get_output_embeddings") or model.get_output_embeddings() is None:
        return plain
    batch, unmasked = _probe_batch(vocabulary)
    device = next(model.parameters()).device
    separate, shared = (lay_out(batch, shared=share, device=device) for share in (False, True))
    truth = forward(model, separate, plain, 2**24)
    noise = 8 * torch.finfo(next(model.parameters()).dtype).eps * truth.abs().max().item()

    layout = replace(plain, head=True)
    error = _distance(forward, model, separate, layout, truth)
    if not error <= noise:
        layout = replace(plain, why="its logits are not one linear map of the last hidden state; full logits are computed.")

    # A prompt is shared only if what remains is small beside what the mask and the positions are there to prevent.
    wrong = forward(model, lay_out(unmasked, shared=False, device=device), plain, 2**24)
    effect = (wrong - truth[-len(wrong) :]).abs().max().item()
    error = _distance(forward, model, shared, layout, truth)
    if _has_sliding_window(model):
        return replace(layout, why="its attention window slides; prompts are not shared between completions.")
    if not error <= max(noise, 0.01 * effect):
        why = f"{layout.why} It does not honour position ids with a 4-D mask; prompts are not shared between completions."
        return replace(layout, why=why.strip())
    return replace(layout, shared_prompt=True)


def _probe_batch(vocabulary: int) -> tuple[list[Encoded], list[Encoded]]:
    """Two prompts with two completions each, at most 15 positions; and the last completion seen after the one before it."""
    ids = [(7 * k * k + 3 * k + 1) % vocabulary for k in range(40)]
    first = Encoded(tuple(ids[:3]), (tuple(ids[3:5]), tuple(ids[5:9])), (False, False))
    prompt, one, two = tuple(ids[10:16]), tuple(ids[16:20]), tuple(ids[20:25])
    return [first, Encoded(prompt, (one, two), (False, False))], [Encoded(prompt + one, (two,), (False,))]


def _distance(forward: Forward, model: nn.Module, rows: Rows, layout: Layout, truth: Tensor) -> float:
    try:
        return (forward(model, rows, layout, 2**24).to(truth) - truth).abs().max().item()
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError, AttributeError):
        return float("inf")


def _logit_width(model: Any) -> int:
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{type(model).__name__} is an encoder-decoder; expected a causal (decoder-only) language model.")
    device = next(model.parameters()).device
    ids = torch.zeros(1, 3, dtype=torch.long, device=device)
    logits = getattr(model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False), "logits", None)
    if logits is None or logits.dim() != 3 or logits.shape[1] != 3:
        found = "no logits" if logits is None else f"logits of shape {list(logits.shape)} for 3 tokens"
        raise ModelError(
            f"{type(model).__name__} returns {found}; expected one row of logits a token, as causal language models have."
        )
    return int(logits.shape[-1])


def _has_sliding_window(model: Any) -> bool:
    config = getattr(model, "config", None)
    kinds = getattr(config, "layer_types", None) or ()
    return any("sliding" in str(kind) or "chunked" in str(kind) for kind in kinds) or (
        not kinds and getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    )
