"""log softmax(W h + b) at one label, without the array [tokens × vocabulary]: computed in blocks. Where W and b are fixed
(under an adapter) the gradient is found on the way; elsewhere the blocks are recomputed in the backward pass."""

from typing import Any

import torch
from torch import Tensor

from multiref.errors import ArgumentError

CACHED = 2**20  # elements of a block on a CPU: 4 MiB in float32
COLUMNS = 2048  # vocabulary entries of it: with twice as many a product of 256 by 256 takes an eighth longer (measured)


def label_logps(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, *, budget: int) -> Tensor:
    """[n, D], [V, D], [V] or None, [n] → [n]: log-probability of each label; float32 or wider.

    logp = z_label − log Σ_v exp z_v,   z = W h + b

    Differentiable once, in hidden, weight and bias. No array of more than `budget` logits exists at any time, forward or
    backward (budget counts elements; a block is at least one token wide and one vocabulary entry deep).
    """
    logps: Tensor = _LabelLogps.apply(hidden, weight, bias, labels, budget)  # type: ignore[no-untyped-call]
    return logps


def _blocks(hidden: Tensor, vocabulary: int, budget: int) -> tuple[int, int]:
    """Tokens and vocabulary entries of a block of at most `budget` logits; on a CPU small enough to stay in its cache."""
    tokens, most = max(len(hidden), 1), 256
    if hidden.device.type == "cpu":
        budget, vocabulary, most = min(budget, CACHED), min(vocabulary, COLUMNS), 384
    rows = max(1, min(tokens, most, budget))
    columns = max(1, min(vocabulary, budget // rows))
    rows = max(rows, min(tokens, budget // columns))
    return -(-tokens // -(-tokens // rows)), columns  # of equal size: a short block at the end is slow


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, wide: torch.dtype, room: Tensor) -> Tensor:
    """[n, v] in `wide`, in the memory of `room` where the dtypes allow."""
    weight = weight.T.to(hidden.dtype)
    if hidden.dtype == wide:
        logits = torch.mm(hidden, weight, out=room[: len(hidden) * weight.shape[1]].view(len(hidden), -1))
    else:
        logits = _product(hidden, weight, wide)
    return logits if bias is None else logits.add_(bias.to(wide))


def _product(left: Tensor, right: Tensor, wide: torch.dtype) -> Tensor:
    """left @ right in `wide`, of factors in the dtype of `right`; no sum is rounded to float16, which ends at 65,504."""
    left = left.to(right.dtype)
    if right.device.type == "cuda" and right.dtype != wide:
        return torch.mm(left, right, out_dtype=wide)
    if right.dtype != torch.float16:
        return (left @ right).to(wide)
    room = left.new_empty(len(left), right.shape[1], dtype=wide)
    return torch.mm(left.to(wide), right.to(wide), out=room)  # in this form autocast leaves it alone


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, as `_product`."""
    if left.dtype == right.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += _product(left, right, total.dtype)


class _LabelLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, budget: int) -> Tensor:
        kind = hidden.device.type  # a custom function must ask for autocast's dtype itself
        cast = torch.is_autocast_enabled(kind) and hidden.dtype != torch.float64  # which autocast leaves alone
        dtype = torch.get_autocast_dtype(kind) if cast else hidden.dtype
        wide = torch.promote_types(dtype, torch.float32)
        hidden = hidden.detach().to(dtype)
        rows, columns = _blocks(hidden, len(weight), budget)
        room = hidden.new_empty(rows * columns, dtype=wide)
        log_normaliser = hidden.new_empty(len(labels), dtype=wide)
        chosen = hidden.new_zeros(len(labels), dtype=wide)
        slope = torch.zeros_like(hidden, dtype=wide) if ctx.needs_input_grad[:3] == (True, False, False) else None
        for a in range(0, len(labels), rows):
            h, here = hidden[a : a + rows], labels[a : a + rows]
            top = hidden.new_full((len(h),), torch.finfo(wide).min, dtype=wide)  # a first block may be −∞ throughout
            mass, others = hidden.new_zeros(2, len(h), dtype=wide)
            for v in range(0, len(weight), columns):
                logits = _logits(h, weight[v : v + columns], None if bias is None else bias[v : v + columns], wide, room)
                inside = (here >= v) & (here < v + columns)
                place = (here - v).clamp(0, logits.shape[1] - 1)[:, None]
                chosen[a : a + rows] = torch.where(inside, logits.gather(1, place)[:, 0], chosen[a : a + rows])
                higher = torch.maximum(top, logits.amax(1))
                shrink = (top - higher).exp()
                mass = mass * shrink + logits.sub_(higher[:, None]).exp_().sum(1)
                if slope is not None:
                    logits.scatter_(1, place, logits.gather(1, place).masked_fill_(inside[:, None], 0))
                    others = others * shrink + logits.sum(1)
                    _add_product(slope[a : a + rows].mul_(shrink[:, None]), logits, weight[v : v + columns].to(dtype))
                top = higher
            log_normaliser[a : a + rows] = top + mass.log()
            chosen[a : a + rows] = (chosen[a : a + rows] - top) - mass.log()  # in this order nothing large is rounded
            if slope is not None:  # ∂logp/∂h = (1 − p) W_label − Σ_v p_v W_v over the others; 1 − p is their sum, not rounded
                part = slope[a : a + rows]
                part.copy_((weight[here].to(wide) * others[:, None] - part) / mass[:, None])
        ctx.save_for_backward(*((slope,) if slope is not None else (hidden, weight, bias, labels, log_normaliser)))
        ctx.budget, ctx.wide = budget, wide
        return chosen

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """∂/∂z_v = g (1[v = label] − p_v), blockwise; the products with W and h follow from it."""
        if torch.is_grad_enabled():
            raise ArgumentError(
                "create_graph: these log-probabilities have no second derivative. Take them from the model's own logits."
            )
        saved, grad = ctx.saved_tensors, grad.to(ctx.wide)  # asked for once: what recomputes them has them no second time
        if len(saved) == 1:
            return saved[0] * grad[:, None], None, None, None, None
        hidden, weight, bias, labels, log_normaliser = saved
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros_like(hidden, dtype=ctx.wide) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=ctx.wide) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=ctx.wide) if needs_bias and bias is not None else None
        rows, columns = _blocks(hidden, len(weight), ctx.budget)
        room = hidden.new_empty(rows * columns, dtype=ctx.wide)
        for v in range(0, len(weight), columns):
            w = weight[v : v + columns].to(hidden.dtype)
            for a in range(0, len(labels), rows):
                h, here, g = hidden[a : a + rows], labels[a : a + rows], grad[a : a + rows, None]
                logits = _logits(h, w, None if bias is None else bias[v : v + columns], ctx.wide, room)
                signal = logits.sub_(log_normaliser[a : a + rows, None]).exp_().mul_(-g)
                inside = (here >= v) & (here < v + columns)
                signal.scatter_add_(1, (here - v).clamp(0, signal.shape[1] - 1)[:, None], g * inside[:, None])
                if grad_hidden is not None:
                    _add_product(grad_hidden[a : a + rows], signal, w)
                if grad_weight is not None:
                    _add_product(grad_weight[v : v + columns], signal.T, h)
                if grad_bias is not None:
                    grad_bias[v : v + columns] += signal.sum(0)
        return grad_hidden, grad_weight, grad_bias, None, None
