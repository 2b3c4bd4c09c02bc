"""Sums over the whole vocabulary at each sampled state, a block of positions at a time:
divergence to the pool, and the references' disagreement."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from multiref._logspace import check_weights, weighted_sum
from multiref.models.architecture import head_of, run, with_forward
from multiref.models.encoding import Encoded
from multiref.models.forward import LOGITS_BUDGET, inputs_of
from multiref.models.logps import audited, in_order
from multiref.models.rows import Rows
from multiref.training.online.penalty import Penalty

Divergence = Callable[[Tensor, Tensor], Tensor]


def vocabulary_terms(
    policy: nn.Module,
    references: Sequence[nn.Module],
    batch: Sequence[Encoded],
    weights: Any = None,
    *,
    divergence: Divergence = Penalty.at_state,
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
    own = _features(policy, batch)
    labels = torch.tensor([token for item in batch for ids in item.completions for token in ids], device=own.owner.device)
    w = check_weights(weights, len(references)).to(own.owner.device)
    present = [k for k in range(len(references)) if bool((w[k] > 0).any())]
    references, w = [references[k] for k in present], w[present]
    with torch.no_grad():
        others = [_features(reference, batch) for reference in references]
    parts = []
    step = max(1, logits_budget // max(own.vocabulary * (1 + len(references)), 1))
    for start in range(0, len(labels), step):
        here = slice(start, start + step)
        each = w[:, own.owner[here]] if w.ndim == 2 else w[:, None]

        def block(hidden: Tensor, *theirs: Tensor, each: Tensor = each, labels: Tensor = labels[here]) -> Tensor:
            logits, refs = own.head(hidden), [other.head(h) for other, h in zip(others, theirs)]
            width = min(logits.shape[-1], *(other.shape[-1] for other in refs))
            wide = torch.promote_types(logits.dtype, torch.float32)
            logps = logits[..., :width].to(wide).log_softmax(-1)
            with torch.no_grad():
                levels = torch.stack([other[..., :width].to(wide).log_softmax(-1) for other in refs])
                pool = weighted_sum(levels, each[..., None].to(wide))
            return torch.stack([logps.gather(-1, labels[:, None])[:, 0], divergence(logps, pool), -pool.logsumexp(-1)], -1)

        inputs = (own.states[here], *(other.states[here] for other in others))
        again = torch.is_grad_enabled() and step < len(labels)  # one block is within the budget anyway
        parts.append(checkpoint(block, *inputs, use_reentrant=False) if again else block(*inputs))
    terms = torch.cat(parts) if parts else torch.zeros(0, 3, device=labels.device)
    return terms[:, 0], terms[:, 1], terms[:, 2]


class _Features(NamedTuple):
    """states: [n, D] last hidden states where a token is predicted; head: makes logits of them (of a model without a head
    apart, states are the logits); owner: [n] the completion of each; vocabulary: width of the logits."""

    states: Tensor
    head: Callable[[Tensor], Tensor]
    owner: Tensor
    vocabulary: int


def _features(model: Any, batch: Sequence[Encoded]) -> _Features:
    """Of one model, in the layout that stands for these rows."""
    audit = audited(model, batch)
    head = head_of(model) if audit.head else None
    states, owner = in_order(model, batch, audit, lambda rows: _states(model, rows, head))
    return _Features(states, head or (lambda logits: logits), owner, audit.vocabulary)


def _states(model: Any, rows: Rows, head: Any) -> Tensor:
    if head is None:
        logits: Tensor = run(model, **inputs_of(model, rows)).logits
        return logits.flatten(0, 1)[rows.where]
    with with_forward(head, lambda hidden: hidden.flatten(0, 1)[rows.where][None]):
        states: Tensor = run(model, **inputs_of(model, rows)).logits[0]
    return states
