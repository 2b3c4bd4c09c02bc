"""Many completions under one model: rows planned, audited, batched, run without gradients, put back in order."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from multiref._progress import tell
from multiref.errors import ModelError
from multiref.models.architecture import AtRest, check_rows, evaluating
from multiref.models.audit import Audit, audit_layout, token_budget_of
from multiref.models.batching import Layout, plan_batches
from multiref.models.encoding import Encoded
from multiref.models.forward import LOGITS_BUDGET, device_of, forward_logps
from multiref.models.rows import lay_out
from multiref.models.witness import Scores


def score_completions(
    model: Any,
    encoded: Sequence[Encoded],
    *,
    layout: Layout | Audit | None = None,
    token_budget: int | None = None,
    logits_budget: int = LOGITS_BUDGET,
    known: Scores | None = None,
) -> Tensor:
    """log π(completion | prompt) of every completion in order: [n] float64 on the CPU; evaluation mode, no gradient.

    Args:
        layout: how rows are laid out. None: as an audit of these rows finds it right (see `models.audit_layout`);
            an `Audit` is obeyed, and a row that it does not cover is scored alone; a name is taken at its word.
        token_budget: tokens of one forward pass, padding counted; None: what suits the device.
        logits_budget: elements of one block of logits (see `completion_logps`).
        known: what an audit computed already of the same rows.
    """
    logps = score_tokens(model, encoded, layout=layout, token_budget=token_budget, logits_budget=logits_budget, known=known)
    owner = torch.arange(len(logps)).repeat_interleave(torch.tensor([len(each) for each in logps], dtype=torch.long))
    return torch.zeros(len(logps), dtype=torch.float64).index_add(0, owner, torch.cat([torch.empty(0), *logps]).double())


def score_tokens(
    model: Any,
    encoded: Sequence[Encoded],
    *,
    layout: Layout | Audit | None = None,
    token_budget: int | None = None,
    logits_budget: int = LOGITS_BUDGET,
    known: Scores | None = None,
) -> list[Tensor]:
    """log π(y_t | x, y_<t) of every token: for each completion, in order, a tensor on the CPU.
    Otherwise as `score_completions`."""
    check_rows(model, encoded)
    budget, known = token_budget or token_budget_of(model), {} if known is None else known
    if isinstance(layout, Audit):
        audit, within = layout, layout.span if layout.layout != "alone" else None
    else:
        audit, within = audit_layout(model, encoded, token_budget=budget, logits_budget=logits_budget, scores=known), None
        audit = replace(audit, layout=layout or audit.layout)
    logps: list[Tensor] = [torch.empty(0)] * sum(len(item.completions) for item in encoded)
    with torch.inference_mode(), evaluating(model):
        rest, done = AtRest(model) if audit.stateful else None, 0
        for batch in plan_batches(encoded, audit.layout, budget, within=within):
            values = known.pop((batch, audit.head), None) if known else None
            if values is None:
                rows = lay_out(batch.items, shared=batch.shared, device=device_of(model))
                found = forward_logps(model, rows, head=audit.head, vocabulary=audit.vocabulary, budget=logits_budget)
                values = list(found.cpu().split([len(ids) for item in batch.items for ids in item.completions]))
                if rest is not None:
                    rest.restore()
            for place, value in zip((place for places in batch.places for place in places), values):
                logps[place] = value
            done += len(values)
            tell("scoring", done, len(logps))
    bad = next((n for n, each in enumerate(logps) if bool(each.isnan().any())), None)
    if bad is not None:
        raise ModelError(
            f"Completion {bad + 1} of {len(logps)} has a token whose log-probability is not a number. Check the model's "
            "weights and dtype (float16 overflows to NaN)."
        )
    return logps
