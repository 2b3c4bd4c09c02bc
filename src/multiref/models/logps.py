"""Log-probabilities of completions under a causal language model, for scoring and for training."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from multiref.models.architecture import Layout, layout_of, unwrapped
from multiref.models.encoding import Encoded
from multiref.models.head import label_logps
from multiref.models.rows import Rows, lay_out

LOGITS_BUDGET = 2**24  # elements of one block of logits: 64 MiB in float32


def completion_logps(
    model: nn.Module,
    batch: Sequence[Encoded],
    *,
    shared_prompt: bool | None = None,
    logits_budget: int = LOGITS_BUDGET,
) -> Tensor:
    """log π(completion | prompt) of every completion of the batch, in order: [total completions], float64 (MPS: float32).

    log π(y|x) = Σ_t log π(y_t | x, y_<t), at temperature 1, summed over the tokens of the completion alone.

    Differentiable; wrap it in `torch.inference_mode()` to score. Dropout is as the model's mode says: call `model.eval()` first
    for scores. One forward pass over the batch.

    Args:
        shared_prompt: one row per `Encoded`, its completions side by side; None: where the model is able to (checked once).
        logits_budget: no array of more logits than this exists, forward or backward, except for models whose logits are not
            a linear map of the last hidden state (`Layout.head` is False): they need one row's logits at once.
    """
    logps, owner, count = _run(model, batch, shared_prompt, logits_budget)
    wide = torch.float32 if logps.device.type == "mps" else torch.float64
    return torch.zeros(count, dtype=wide, device=logps.device).index_add(0, owner, logps.to(wide))


def token_logps(
    model: nn.Module,
    batch: Sequence[Encoded],
    *,
    shared_prompt: bool | None = None,
    logits_budget: int = LOGITS_BUDGET,
) -> list[Tensor]:
    """log π(y_t | x, y_<t): for each completion of the batch, in order, a tensor of its length.
    Otherwise as `completion_logps`."""
    logps, owner, count = _run(model, batch, shared_prompt, logits_budget)
    return list(logps.split(torch.bincount(owner, minlength=count).tolist()))


def completion_logits(model: nn.Module, item: Encoded, index: int = 0) -> Tensor:
    """[T, V]: the logits from which each token of one completion is predicted, as the model gives them."""
    context = item.context(index)
    ids = torch.tensor([[*context, *item.completions[index]]], device=_device(model))
    logits: Tensor = model(input_ids=ids, use_cache=False).logits[0, len(context) - 1 : -1]
    return logits


def _run(model: nn.Module, batch: Sequence[Encoded], shared: bool | None, budget: int) -> tuple[Tensor, Tensor, int]:
    """Token log-probabilities [n], the completion that each belongs to [n], and the number of completions."""
    layout = layout_of(model, forward_logps)
    rows = lay_out(batch, shared=layout.shared_prompt if shared is None else shared, device=_device(model))
    if not len(rows.labels):
        return torch.zeros(0, device=rows.labels.device), rows.owner, rows.completions
    return forward_logps(model, rows, layout, budget), rows.owner, rows.completions


def forward_logps(model: nn.Module, rows: Rows, layout: Layout, budget: int) -> Tensor:
    """[n] token log-probabilities of rows as laid out, by the way that the layout names."""
    if layout.head:
        return _captured_logps(model, rows, budget)
    return _plain_logps(model, rows, layout, budget)


def _captured_logps(model: nn.Module, rows: Rows, budget: int) -> Tensor:
    """The model's own forward, with its head replaced for the time by log-probabilities at the places that are wanted.

    Going through the model, not around it, keeps what hangs on its forward: DistributedDataParallel, FSDP, gradient
    checkpointing, PEFT, autocast, devices of the layers.
    """

    head = unwrapped(model).get_output_embeddings()
    original, saved = head.forward, head.__dict__.get("forward")
    hooked = head._forward_hooks or head._forward_pre_hooks or hasattr(head, "_hf_hook")

    def head_logps(hidden: Tensor) -> Tensor:
        wanted = hidden.flatten(0, 1)[rows.where.to(hidden.device)]
        labels = rows.labels.to(hidden.device)
        if type(head) is nn.Linear and head.weight.device == hidden.device and not hooked:
            return label_logps(wanted, head.weight, head.bias, labels, budget=budget)[None, :, None]
        vocabulary = int(getattr(_config(model), "vocab_size", 1))
        return _module_logps(original, wanted, labels, budget // max(vocabulary, 1))[None, :, None]

    head.forward = head_logps
    try:
        logps: Tensor = model(**_inputs(model, rows)).logits.flatten()
    finally:
        if saved is None:
            del head.forward
        else:
            head.forward = saved
    return logps


def _module_logps(head: Callable[[Tensor], Tensor], hidden: Tensor, labels: Tensor, rows: int) -> Tensor:
    """For heads that are no plain linear layer (an adapter on it, quantised): the module itself, a few tokens at a time."""

    def some(h: Tensor, y: Tensor) -> Tensor:
        return _gather(head(h), y)

    parts = []
    for h, y in zip(hidden.split(max(rows, 1)), labels.split(max(rows, 1))):
        parts.append(checkpoint(some, h, y, use_reentrant=False) if torch.is_grad_enabled() else some(h, y))
    return torch.cat(parts)


def _gather(logits: Tensor, labels: Tensor) -> Tensor:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.gather(-1, labels[..., None])[..., 0] - logits.logsumexp(-1)


def _plain_logps(model: nn.Module, rows: Rows, layout: Layout, budget: int) -> Tensor:
    """Full logits, as many rows at a time as the budget holds (at least one)."""
    width = rows.input_ids.shape[1]
    step = max(1, budget // max(width * layout.vocabulary, 1))
    logps = []
    order = []
    inputs = _inputs(model, rows)
    for a in range(0, len(rows.input_ids), step):
        inside = ((rows.where >= a * width) & (rows.where < (a + step) * width)).nonzero()[:, 0]
        logits = model(
            **{name: value[a : a + step] if isinstance(value, Tensor) else value for name, value in inputs.items()}
        ).logits
        logps.append(_gather(logits.flatten(0, 1)[(rows.where[inside] - a * width).to(logits.device)], rows.labels[inside]))
        order.append(inside)
    back = torch.cat(order).argsort()
    return torch.cat(logps)[back]


def _inputs(model: nn.Module, rows: Rows) -> dict[str, Any]:
    inputs: dict[str, Any] = {"input_ids": rows.input_ids, "attention_mask": rows.attention_mask, "use_cache": False}
    if rows.mask is not None:
        inputs["position_ids"] = rows.position_ids
        inputs["attention_mask"] = rows.mask
        if getattr(_config(model), "_attn_implementation", "sdpa") != "sdpa":  # eager attention adds its mask
            dtype = next(model.parameters()).dtype
            zero = torch.zeros((), dtype=dtype, device=rows.mask.device)
            inputs["attention_mask"] = torch.where(rows.mask, zero, torch.finfo(dtype).min)
    return inputs


def _config(model: nn.Module) -> Any:
    return getattr(unwrapped(model), "config", None)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
