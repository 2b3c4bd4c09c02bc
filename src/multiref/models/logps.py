"""Log-probabilities of completions under a causal language model: differentiable, one batch at a time, for training; and many
at once, planned, audited, batched, run without gradients, put back in order."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from multiref._progress import tell
from multiref.errors import ModelError
from multiref.models.architecture import check_rows, evaluating, left_as_it_was, run
from multiref.models.audit import Audit, audit_layout, token_budget_of
from multiref.models.batching import Layout, plan_batches
from multiref.models.encoding import Encoded
from multiref.models.forward import LOGITS_BUDGET, check_labels, device_of, forward_logps, uncached
from multiref.models.rows import Rows, lay_out
from multiref.models.witness import Scores

ONE_PASS = 2**62  # tokens: whatever the batch has, in one forward pass


def completion_logps(
    model: nn.Module,
    batch: Sequence[Encoded],
    *,
    layout: Layout | None = None,
    share: bool = True,
    logits_budget: int = LOGITS_BUDGET,
) -> Tensor:
    """log π(completion | prompt) of every completion of the batch, in order: [total completions], float64 (MPS: float32).

    log π(y|x) = Σ_t log π(y_t | x, y_<t), at temperature 1, summed over the tokens of the completion alone.

    Differentiable; wrap it in `torch.inference_mode()` to score. Dropout is as the model's mode says: call `model.eval()` first
    for scores. One forward pass over the batch, unless the layout is "alone".

    Args:
        layout: how rows are laid out; None: as an audit finds it right. The batch's own rows are audited where no audit of this
            model covers them (`models.audit_layout` on all rows that will come costs once); a name is taken at its word.
        share: False: every completion has a row of its own, also where the prompt could be shared.
        logits_budget: no array of more logits than this exists, forward or backward, except for models whose logits are not
            a linear map of the last hidden state (`Audit.head` is False): they need one row's logits at once.
    """
    logps, owner, count = _run(model, batch, layout, share, logits_budget)
    wide = torch.float32 if logps.device.type == "mps" else torch.float64
    return torch.zeros(count, dtype=wide, device=logps.device).index_add(0, owner, logps.to(wide))


def token_logps(
    model: nn.Module,
    batch: Sequence[Encoded],
    *,
    layout: Layout | None = None,
    share: bool = True,
    logits_budget: int = LOGITS_BUDGET,
) -> list[Tensor]:
    """log π(y_t | x, y_<t): for each completion of the batch, in order, a tensor of its length.
    Otherwise as `completion_logps`."""
    logps, owner, count = _run(model, batch, layout, share, logits_budget)
    return list(logps.split(torch.bincount(owner, minlength=count).tolist()))


def completion_logits(model: nn.Module, item: Encoded, index: int = 0) -> Tensor:
    """[T, V]: the logits from which each token of one completion is predicted, as the model gives them: a plain row."""
    context = item.context(index)
    ids = torch.tensor([[*context, *item.completions[index]]], device=device_of(model))
    logits: Tensor = run(model, input_ids=ids, **uncached(model)).logits[0, len(context) - 1 : -1]
    return logits


def audited(model: nn.Module, batch: Sequence[Encoded], *, layout: Layout | None = None, share: bool = True) -> Audit:
    """What stands for this batch, run in one pass: what is known, or an audit of its rows."""
    check_rows(model, batch)
    audit = audit_layout(model, batch, token_budget=ONE_PASS, always=True)
    check_labels(model, (ids for item in batch for ids in item.completions), audit.vocabulary)
    if layout is None:
        layout = "batched" if audit.layout == "shared" and not share else audit.layout
    return replace(audit, layout=layout)


def in_order(model: nn.Module, batch: Sequence[Encoded], audit: Audit, read: Callable[[Rows], Tensor]) -> tuple[Tensor, Tensor]:
    """What `read` gives for each completion token of a forward pass, [n, …] over the passes that the layout asks for (one, but
    where rows stand alone), in the order of the completions; and the completion to which each belongs [n]."""
    device = device_of(model)
    found, owners = [], [torch.zeros(0, dtype=torch.long, device=device)]
    for part in plan_batches(batch, audit.layout, ONE_PASS, always=True):
        rows = lay_out(part.items, shared=part.shared, device=device)
        with left_as_it_was(model) if audit.stateful else nullcontext():
            found.append(read(rows))
        places = torch.tensor([place for places in part.places for place in places], device=device)
        owners.append(places[rows.owner])
    owner = torch.cat(owners)
    order = owner.argsort(stable=True)
    return (torch.cat(found)[order] if found else torch.zeros(0, device=device)), owner[order]


def _run(
    model: nn.Module, batch: Sequence[Encoded], layout: Layout | None, share: bool, budget: int
) -> tuple[Tensor, Tensor, int]:
    """Token log-probabilities [n], the completion that each belongs to [n], and the number of completions."""
    audit = audited(model, batch, layout=layout, share=share)
    read = partial(forward_logps, model, head=audit.head, vocabulary=audit.vocabulary, budget=budget)
    logps, owner = in_order(model, batch, audit, read)
    return logps, owner, sum(len(item.completions) for item in batch)


# ---- many, without gradients ----


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
    check_labels(model, (ids for item in encoded for ids in item.completions), audit.vocabulary)
    logps: list[Tensor] = [torch.empty(0)] * sum(len(item.completions) for item in encoded)
    with torch.inference_mode(), evaluating(model):
        done = 0
        for batch in plan_batches(encoded, audit.layout, budget, within=within):
            values = known.pop((batch, audit.head), None) if known else None
            if values is None:
                rows = lay_out(batch.items, shared=batch.shared, device=device_of(model))
                with left_as_it_was(model) if audit.stateful else nullcontext():
                    found = forward_logps(model, rows, head=audit.head, vocabulary=audit.vocabulary, budget=logits_budget)
                values = list(found.cpu().split([len(ids) for item in batch.items for ids in item.completions]))
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
