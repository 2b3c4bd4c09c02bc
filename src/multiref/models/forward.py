"""One forward pass over rows as they are laid out, and one over a single sequence as plainly as can be."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from multiref.errors import ModelError
from multiref.models.architecture import embedding_size, head_of, run, takes, unwrapped, with_forward, without_extras
from multiref.models.encoding import context_of
from multiref.models.head import label_logps
from multiref.models.rows import Rows

LOGITS_BUDGET = 2**24  # elements of one block of logits: 64 MiB in float32


class Plain(NamedTuple):
    """What one plain sequence says. logps: [n] of the labels, or of those at `at`; vocabulary: the logits' width; largest: the
    largest logit's size; of_head: the logits are what the output embedding gave, bit for bit."""

    logps: Tensor
    vocabulary: int
    largest: float
    of_head: bool
    at: tuple[int, ...] | None = None

    def beside(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the first labels' other log-probabilities that are known here, and what is known of them."""
        if self.at is None:
            return values, self.logps[: len(values)]
        places = [place for place in self.at if place < len(values)]
        return values[places], self.logps[: len(places)]


def plain_logps(
    model: Any, row: tuple[int, ...], labels: tuple[int, ...], first: int, *, at: tuple[int, ...] | None = None
) -> Plain:
    """log softmax(model(row).logits) at `labels`, which positions first, first + 1, … predict: one sequence, token ids alone.

    at: of the labels at these places alone: the head sees no other hidden states, for logits of a long row take much memory.
    Errors: ModelError for what is no causal language model, and for logits that are not numbers.
    """
    model = unwrapped(model)
    head = head_of(model)
    original: Any = getattr(head, "forward", None)
    seen: list[Tensor] = []

    def watched(hidden: Tensor, *others: Any) -> Tensor:
        seen.append(original(hidden if at is None else hidden[:, [first + place for place in at]], *others))
        return seen[-1]

    with with_forward(head, watched) if head is not None else nullcontext():
        try:
            ids = torch.tensor([row], device=device_of(model))
            logits = getattr(run(model, input_ids=ids, **uncached(model)), "logits", None)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever its code raises on what every causal language model takes
            what = str(error).strip().splitlines() or [""]
            raise ModelError(
                f"{type(model).__name__} does not run on a plain row of {len(row)} token ids ({type(error).__name__}: "
                f"{what[0]:.120}); expected a causal (decoder-only) language model, whose context holds the row."
            ) from error
    if logits is None or logits.dim() != 3 or logits.shape[1] != (len(row) if at is None else len(at)):
        found = "no logits" if logits is None else f"logits of shape {list(logits.shape)} for {len(row)} tokens"
        raise ModelError(
            f"{type(model).__name__} returns {found}; expected one row of logits a token, as causal language models have."
        )
    of_head = len(seen) == 1 and seen[0].shape == logits.shape
    if of_head and not (seen[0].data_ptr() == logits.data_ptr() and seen[0].dtype == logits.dtype):
        of_head = torch.equal(seen[0].to(logits), logits)
    here = logits[0, first : first + len(labels)] if at is None else logits[0]
    labels = labels if at is None else tuple(labels[place] for place in at)
    check_labels(model, [labels], logits.shape[-1])
    logps = gather(here, torch.tensor(labels, device=here.device))
    if bool(logps.isnan().any()):
        raise ModelError(
            f"{type(model).__name__} gives log-probabilities that are not numbers on a row of {len(row)} tokens, run alone. "
            "Check its weights and dtype (float16 overflows to NaN)."
        )
    largest = max(map(abs, map(float, here.aminmax()))) if here.numel() else 0.0
    return Plain(logps.cpu(), logits.shape[-1], largest, of_head, at)


def check_labels(model: Any, completions: Iterable[Sequence[int]], vocabulary: int) -> None:
    """ModelError for a token that has no logit: some models read more tokens than they predict."""
    if (largest := max((token for ids in completions for token in ids), default=-1)) >= vocabulary:
        raise ModelError(
            f"Token id {largest} occurs in a completion, and {type(unwrapped(model)).__name__} has logits of {vocabulary} "
            "tokens. Expected the tokenizer that belongs to the model."
        )


def forward_logps(model: nn.Module, rows: Rows, *, head: bool, vocabulary: int, budget: int) -> Tensor:
    """[n] token log-probabilities of rows as laid out. head: by the output embedding on the places that are wanted alone."""
    if not len(rows.labels):
        return torch.zeros(0, device=rows.labels.device)
    return _captured_logps(model, rows, vocabulary, budget) if head else _whole_logps(model, rows, vocabulary, budget)


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def uncached(model: Any) -> dict[str, Any]:
    """Nothing is kept for a next token, where the model lets one say so, and nothing computed beside the logits."""
    names = takes(model)
    return ({"use_cache": False} if {"use_cache", "kwargs"} & set(names) else {}) | without_extras(names)


@torch.no_grad()
def probed(model: Any, most: int = 16) -> Tensor:
    """[1, T, V]: the logits of a few tokens, as many as that where the model's context holds them."""
    ids = torch.arange(1, 1 + min(most, context_of(model.config) or most), device=device_of(model))[None]
    logits: Tensor = run(model, input_ids=ids * 7919 % (embedding_size(model) or 2), **uncached(model)).logits
    return logits


def inputs_of(model: nn.Module, rows: Rows) -> dict[str, Any]:
    """The arguments of the forward pass; of a single separate row its token ids alone."""
    inputs: dict[str, Any] = {"input_ids": rows.input_ids, **uncached(model)}
    if rows.mask is not None:
        inputs["position_ids"] = rows.position_ids
        inputs["attention_mask"] = rows.mask
        if getattr(getattr(unwrapped(model), "config", None), "_attn_implementation", "sdpa") != "sdpa":  # eager adds its mask
            dtype = next(model.parameters()).dtype
            zero = torch.zeros((), dtype=dtype, device=rows.mask.device)
            inputs["attention_mask"] = torch.where(rows.mask, zero, torch.finfo(dtype).min)
    elif rows.padded:
        inputs["attention_mask"] = rows.attention_mask
    return inputs


def gather(logits: Tensor, labels: Tensor) -> Tensor:
    """[n, V], [n] → [n]: log softmax at the labels, in float32 or wider."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.gather(-1, labels[..., None])[..., 0] - logits.logsumexp(-1)


def _captured_logps(model: nn.Module, rows: Rows, vocabulary: int, budget: int) -> Tensor:
    """The model's own forward, with its head replaced for the time by log-probabilities at the places that are wanted.

    Going through the model, not around it, keeps what hangs on its forward: DistributedDataParallel, FSDP, gradient
    checkpointing, PEFT, autocast, devices of the layers.
    """
    head = head_of(model)
    original = head.forward
    hooked = head._forward_hooks or head._forward_pre_hooks or hasattr(head, "_hf_hook")

    def head_logps(hidden: Tensor) -> Tensor:
        wanted = hidden.flatten(0, 1)[rows.where.to(hidden.device)]
        labels = rows.labels.to(hidden.device)
        if type(head) is nn.Linear and head.weight.device == hidden.device and not hooked:
            return label_logps(wanted, head.weight, head.bias, labels, budget=budget)[None, :, None]
        return _module_logps(original, wanted, labels, budget // max(vocabulary, 1))[None, :, None]

    with with_forward(head, head_logps):
        logps: Tensor = run(model, **inputs_of(model, rows)).logits.flatten()
    return logps


def _module_logps(head: Callable[[Tensor], Tensor], hidden: Tensor, labels: Tensor, rows: int) -> Tensor:
    """For heads that are no plain linear layer (an adapter on it, quantised): the module itself, a few tokens at a time."""

    def some(h: Tensor, y: Tensor) -> Tensor:
        return gather(head(h), y)

    parts = []
    for h, y in zip(hidden.split(max(rows, 1)), labels.split(max(rows, 1))):
        parts.append(checkpoint(some, h, y, use_reentrant=False) if torch.is_grad_enabled() else some(h, y))
    return torch.cat(parts)


def _whole_logps(model: nn.Module, rows: Rows, vocabulary: int, budget: int) -> Tensor:
    """Full logits, as many rows at a time as the budget holds (at least one)."""
    width = rows.input_ids.shape[1]
    step = max(1, budget // max(width * vocabulary, 1))
    logps = []
    order = []
    inputs = inputs_of(model, rows)
    for a in range(0, len(rows.input_ids), step):
        inside = ((rows.where >= a * width) & (rows.where < (a + step) * width)).nonzero()[:, 0]
        some = {name: value[a : a + step] if isinstance(value, Tensor) else value for name, value in inputs.items()}
        logits = run(model, **some).logits
        logps.append(gather(logits.flatten(0, 1)[(rows.where[inside] - a * width).to(logits.device)], rows.labels[inside]))
        order.append(inside)
    return torch.cat(logps)[torch.cat(order).argsort()]
