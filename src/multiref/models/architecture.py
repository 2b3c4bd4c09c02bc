"""What a model allows: a head apart from its body, a prompt shared by its completions. Found by trying, once per model."""

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

_log = logging.getLogger("multiref")
_known: "WeakKeyDictionary[nn.Module, Layout]" = WeakKeyDictionary()


@dataclass(frozen=True)
class Layout:
    """head: logits are the output embedding of the last hidden state and nothing more, so that it may be applied to some
    positions only. shared_prompt: position ids and a 4-D mask are honoured. vocabulary: width of the logits. why:
        what failed."""

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
    while hasattr(model, "_orig_mod") or type(model).__name__ == "DistributedDataParallel":
        model = getattr(model, "_orig_mod", None) or model.module
    return model


def _probe(model: Any, forward: Forward) -> Layout:
    layout = Layout(head=False, shared_prompt=False, vocabulary=_logit_width(model))
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None:
        return layout
    batch, unmasked = _probe_batch(layout.vocabulary)
    device = next(model.parameters()).device

    def run(items: list[Encoded], layout: Layout, *, shared: bool = False) -> Tensor:
        return forward(model, lay_out(items, shared=shared, device=device), layout, 2**24)

    truth = run(batch, layout)
    if _logits_are_of(model, head, batch):
        layout = replace(layout, head=True)
    else:
        layout = replace(layout, why="its logits are not the head's output as it is; full logits are computed.")
    if _has_sliding_window(model):
        return replace(
            layout, why=f"{layout.why} Its attention window slides; prompts are not shared between completions.".strip()
        )
    if any("quantized.dynamic" in type(module).__module__ for module in model.modules()):
        return layout  # what is beside a row changes its activations' scale, and so its score
    # Sharing may move a score by what batching moves it anyway, or by little beside what mask and positions are there to
    # prevent.
    one_by_one = torch.cat([run([item], layout) for item in batch])
    effect = _largest(run(unmasked, layout) - truth[-len(unmasked[0].completions[0]) :])
    floor = 0.05 if next(model.parameters()).dtype.itemsize == 2 else 1e-4
    tolerance = max(4 * _largest(one_by_one - truth), min(floor, 0.01 * effect))
    try:
        error = _largest(run(batch, layout, shared=True) - truth)
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError, AttributeError):
        error = float("inf")
    if not error <= tolerance:
        why = f"{layout.why} It does not honour position ids with a 4-D mask; prompts are not shared between completions."
        return replace(layout, why=why.strip())
    return replace(layout, shared_prompt=True)


def _largest(difference: Tensor) -> float:
    return difference.abs().max().item()


def _logits_are_of(model: Any, head: nn.Module, batch: list[Encoded]) -> bool:
    """Whether the model's logits are what its head gives, bit for bit: no scaling, no squashing after it."""
    seen: list[Tensor] = []
    handle = head.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        rows = lay_out(batch, shared=False, device=next(model.parameters()).device)
        logits = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False).logits
    finally:
        handle.remove()
    return len(seen) == 1 and seen[0].shape == logits.shape and torch.equal(seen[0].to(logits), logits)


def _probe_batch(vocabulary: int) -> tuple[list[Encoded], list[Encoded]]:
    """Two prompts with two completions each, at most 15 positions; and the last completion seen after the one before it."""
    ids = [(7 * k * k + 3 * k + 1) % vocabulary for k in range(40)]
    first = Encoded(tuple(ids[:3]), (tuple(ids[3:5]), tuple(ids[5:9])), (False, False))
    prompt, one, two = tuple(ids[10:16]), tuple(ids[16:20]), tuple(ids[20:25])
    return [first, Encoded(prompt, (one, two), (False, False))], [Encoded(prompt + one, (two,), (False,))]


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
