"""Sums over the whole vocabulary at each sampled state, a block of positions at a time:
divergence to the pool, and the references' disagreement."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from multiref._logspace import check_weights, weighted_sum
from multiref.models.architecture import layout_of
from multiref.models.encoding import Encoded
from multiref.models.logps import LOGITS_BUDGET, forward_logps
from multiref.models.rows import Rows, lay_out
from multiref.training.online.penalty import reverse_to_pool

Features = tuple[Tensor, Callable[[Tensor], Tensor]]
Divergence = Callable[[Tensor, Tensor], Tensor]


def vocabulary_terms(
    policy: nn.Module,
    references: Sequence[nn.Module],
    batch: Sequence[Encoded],
    weights: Any = None,
    *,
    divergence: Divergence = reverse_to_pool,
    logits_budget: int = LOGITS_BUDGET,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""At each token of the N completions of `batch`, [n] each, in order:

        log π(y_t | s_t),    D_t = Σ_v π(v|s_t) [log π(v|s_t) − Σ_k w_k log π_k(v|s_t)],
        −log F_t = −log Σ_v Π_k π_k(v|s_t)^{w_k}

    The first two are differentiable in the policy. D_t = Σ_k w_k KL(π_t‖π_{k,t}) ≥ −log F_t ≥ 0.
    No array of more than `logits_budget` logits exists, forward or backward (blocks are recomputed).
    Where models pad the rows of one vocabulary differently, the columns that all have count.

    Args:
        weights: [K], or [K, N] for each completion its own; None is uniform.
            A reference without weight in the whole batch is not run.
        divergence: D_t of (log π(·|s_t), Σ_k w_k log π_k(·|s_t)); by default the one above.
    """
    layout = layout_of(policy, forward_logps)
    shared = layout.shared_prompt and any(len(item.completions) > 1 for item in batch)
    rows = lay_out(batch, shared=shared, device=next(policy.parameters()).device)
    w = check_weights(weights, len(references)).to(rows.labels.device)
    present = [k for k in range(len(references)) if bool((w[k] > 0).any())]
    references, w = [references[k] for k in present], w[present]
    own = _features(policy, rows)
    with torch.no_grad():
        others = [_features(reference, _rows_for(reference, rows, batch)) for reference in references]
    parts = []
    step = max(1, logits_budget // max(layout.vocabulary * (1 + len(references)), 1))
    for start in range(0, len(rows.labels), step):
        here = slice(start, start + step)
        each = w[:, rows.owner[here]] if w.ndim == 2 else w[:, None]

        def block(hidden: Tensor, *theirs: Tensor, each: Tensor = each, labels: Tensor = rows.labels[here]) -> Tensor:
            logits, refs = own[1](hidden), [head(h) for (_, head), h in zip(others, theirs)]
            width = min(logits.shape[-1], *(other.shape[-1] for other in refs))
            wide = torch.promote_types(logits.dtype, torch.float32)
            logps = logits[..., :width].to(wide).log_softmax(-1)
            with torch.no_grad():
                levels = torch.stack([other[..., :width].to(wide).log_softmax(-1) for other in refs])
                pool = weighted_sum(levels, each[..., None].to(wide))
            return torch.stack([logps.gather(-1, labels[:, None])[:, 0], divergence(logps, pool), -pool.logsumexp(-1)], -1)

        inputs = (own[0][here], *(features[here] for features, _ in others))
        again = torch.is_grad_enabled() and step < len(rows.labels)  # one block is within the budget anyway
        parts.append(checkpoint(block, *inputs, use_reentrant=False) if again else block(*inputs))
    terms = torch.cat(parts) if parts else torch.zeros(0, 3, device=rows.labels.device)
    return terms[:, 0], terms[:, 1], terms[:, 2]


def _rows_for(reference: nn.Module, rows: Rows, batch: Sequence[Encoded]) -> Rows:
    """The rows as this model can take them: with the prompt shared where it honours that."""
    if rows.mask is None or layout_of(reference, forward_logps).shared_prompt:
        return rows
    return lay_out(batch, shared=False, device=next(reference.parameters()).device)


def _features(model: Any, rows: Rows) -> Features:
    """([n, D] last hidden states where a token is predicted, the head that makes logits of them).
    Without a head apart: the logits, and nothing."""
    inputs: dict[str, Any] = {"input_ids": rows.input_ids, "attention_mask": rows.attention_mask, "use_cache": False}
    if rows.mask is not None:
        inputs |= {"position_ids": rows.position_ids, "attention_mask": rows.mask}
    head = model.get_output_embeddings() if layout_of(model, forward_logps).head else None
    if head is None:
        return model(**inputs).logits.flatten(0, 1)[rows.where], lambda logits: logits
    saved = head.__dict__.get("forward")
    head.forward = lambda hidden: hidden.flatten(0, 1)[rows.where][None]
    try:
        features = model(**inputs).logits[0]
    finally:
        if saved is None:
            del head.forward
        else:
            head.forward = saved
    return features, head
