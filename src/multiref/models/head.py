"""log softmax(W h + b) at one label, without the array [tokens × vocabulary]: computed in blocks, recomputed in the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["label_logps"]


def label_logps(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, *, budget: int) -> Tensor:
    """[n, D], [V, D], [V] or None, [n] → [n]: log-probability of each label; float32 or wider.

    logp = z_label − log Σ_v exp z_v,   z = W h + b

    Differentiable in hidden, weight and bias. No array of more than `budget` logits exists at any time, forward or backward
    (budget counts elements; a block is at least one token wide and one vocabulary entry deep).
    """
    logps: Tensor = _LabelLogps.apply(hidden, weight, bias, labels, budget)
    return logps


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype of the matrix products: autocast's where it is on, for a custom function must ask for itself."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _blocks(tokens: int, vocabulary: int, budget: int) -> tuple[int, int]:
    """Tokens and vocabulary entries in a block of at most `budget` logits: the vocabulary is cut before 256 tokens are."""
    rows = max(1, min(tokens, 256, budget))
    columns = max(1, min(vocabulary, budget // rows))
    rows = max(rows, min(tokens, budget // columns))
    return rows, columns


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, wide: torch.dtype) -> Tensor:
    logits = (hidden @ weight.T.to(hidden.dtype)).to(wide)
    return logits if bias is None else logits.add_(bias.to(wide))


class _LabelLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, budget: int) -> Tensor:
        dtype = _compute_dtype(hidden)
        wide = torch.promote_types(dtype, torch.float32)
        hidden = hidden.to(dtype)
        rows, columns = _blocks(len(labels), len(weight), budget)
        log_normaliser = hidden.new_empty(len(labels), dtype=wide)
        chosen = hidden.new_empty(len(labels), dtype=wide)
        for a in range(0, len(labels), rows):
            h, here = hidden[a : a + rows], labels[a : a + rows]
            running = hidden.new_full((len(h),), -torch.inf, dtype=wide)
            for v in range(0, len(weight), columns):
                logits = _logits(h, weight[v : v + columns], None if bias is None else bias[v : v + columns], wide)
                inside = (here >= v) & (here < v + columns)
                picked = logits.gather(1, (here - v).clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
                chosen[a : a + rows] = torch.where(inside, picked, chosen[a : a + rows])
                running = torch.logaddexp(running, logits.logsumexp(1))
            log_normaliser[a : a + rows] = running
        ctx.save_for_backward(hidden, weight, bias, labels, log_normaliser)
        ctx.budget, ctx.wide = budget, wide
        return chosen - log_normaliser

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """∂/∂z_v = g (1[v = label] − p_v), blockwise; the products with W and h follow from it."""
        hidden, weight, bias, labels, log_normaliser = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad = grad.to(ctx.wide)
        grad_hidden = torch.zeros_like(hidden, dtype=ctx.wide) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=ctx.wide) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=ctx.wide) if needs_bias and bias is not None else None
        rows, columns = _blocks(len(labels), len(weight), ctx.budget)
        for a in range(0, len(labels), rows):
            h, here, g = hidden[a : a + rows], labels[a : a + rows], grad[a : a + rows, None]
            for v in range(0, len(weight), columns):
                w = weight[v : v + columns].to(h.dtype)
                logits = _logits(h, w, None if bias is None else bias[v : v + columns], ctx.wide)
                signal = logits.sub_(log_normaliser[a : a + rows, None]).exp_().mul_(-g)
                inside = (here >= v) & (here < v + columns)
                signal.scatter_add_(1, (here - v).clamp(0, signal.shape[1] - 1)[:, None], g * inside[:, None])
                narrow = signal.to(h.dtype)
                if grad_hidden is not None:
                    grad_hidden[a : a + rows] += narrow @ w
                if grad_weight is not None:
                    grad_weight[v : v + columns] += narrow.T @ h
                if grad_bias is not None:
                    grad_bias[v : v + columns] += signal.sum(0)
        return (
            None if grad_hidden is None else grad_hidden.to(hidden.dtype),
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
        )
