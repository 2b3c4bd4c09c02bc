"""Many completions under one model: rows planned, batched, run without gradients, put back in order."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from multiref.models.architecture import layout_of
from multiref.models.batching import token_budget_batches
from multiref.models.encoding import Encoded
from multiref.models.logps import LOGITS_BUDGET, forward_logps, token_logps
from multiref.models.rows import row_length

ROW_LIMIT = 2048  # attention grows with the square of a row: completions beyond this start another row with the prompt again


def score_completions(
    model: Any,
    encoded: Sequence[Encoded],
    *,
    token_budget: int | None = None,
    logits_budget: int = LOGITS_BUDGET,
    alone: bool = False,
) -> Tensor:
    """log π(completion | prompt) of every completion in order: [n] float64 on the CPU; evaluation mode, no gradient.

    Args:
        token_budget: tokens of one forward pass, padding counted; None: what suits the device.
        logits_budget: elements of one block of logits (see `completion_logps`).
        alone: one completion a forward pass, without padding, for models in which what is beside a row changes its score
            (activations quantised over the batch).
    """
    logps = score_tokens(model, encoded, token_budget=token_budget, logits_budget=logits_budget, alone=alone)
    owner = torch.arange(len(logps)).repeat_interleave(torch.tensor([len(each) for each in logps], dtype=torch.long))
    return torch.zeros(len(logps), dtype=torch.float64).index_add(0, owner, torch.cat([torch.empty(0), *logps]).double())


def score_tokens(
    model: Any,
    encoded: Sequence[Encoded],
    *,
    token_budget: int | None = None,
    logits_budget: int = LOGITS_BUDGET,
    alone: bool = False,
) -> list[Tensor]:
    """log π(y_t | x, y_<t) of every token: for each completion, in order, a tensor on the CPU.
    Otherwise as `score_completions`."""
    logps: list[Tensor] = [torch.empty(0)] * sum(len(item.completions) for item in encoded)
    training = model.training
    model.eval()
    try:
        shares = layout_of(model, forward_logps).shared_prompt and not alone
        units = list(_units(encoded, shares))
        for shared in (True, False):
            kind = [unit for unit in units if (len(unit[1]) > 1) == shared]
            lengths = [row_length(part, shared=shared) for part, _ in kind]
            for indices in token_budget_batches(lengths, 1 if alone else token_budget or _token_budget(model)):
                with torch.inference_mode():
                    batch = [kind[i][0] for i in indices]
                    values = token_logps(model, batch, shared_prompt=shared, logits_budget=logits_budget)
                    values = list(torch.cat(values).cpu().split([len(each) for each in values]))  # one copy a batch
                for place, value in zip((place for i in indices for place in kind[i][1]), values):
                    logps[place] = value
    finally:
        model.train(training)
    return logps


def _units(encoded: Sequence[Encoded], shares: bool) -> Iterator[tuple[Encoded, list[int]]]:
    """What stays together, and where its completions' scores go: rows with a shared prompt where that saves something, rows of
    one completion elsewhere. Depends on the item alone."""
    first = 0
    for item in encoded:
        count = len(item.completions)
        groups = _groups(item) if shares and _worth_sharing(item) else [(i,) for i in range(count)]
        for group in groups:
            part = Encoded(
                item.prompt_ids,
                tuple(item.completions[i] for i in group),
                tuple(item.truncated[i] for i in group),
                tuple(item.contexts[i] for i in group) if item.contexts else (),
            )
            yield part, [first + i for i in group]
        first += count


def _worth_sharing(item: Encoded) -> bool:
    """Whether sharing leaves out at least a tenth of the tokens; a mask of its own costs more attention than that saves
    below."""
    saved = len(item.prompt_ids) * (len(item.completions) - 1)
    return not item.contexts and saved > 0.1 * (saved + len(item.prompt_ids) + sum(map(len, item.completions)))


def _groups(item: Encoded) -> Iterator[tuple[int, ...]]:
    group: list[int] = []
    length = len(item.prompt_ids)
    for index, ids in enumerate(item.completions):
        if group and length + len(ids) > ROW_LIMIT:
            yield tuple(group)
            group, length = [], len(item.prompt_ids)
        group.append(index)
        length += len(ids)
    yield tuple(group)


def _token_budget(model: Any) -> int:
    """On a CPU as many as keep a layer's activations in its cache (measured: 1,024 at width 256);
    elsewhere as many as fill it."""
    if next(model.parameters()).device.type != "cpu":
        return 32768
    width = getattr(getattr(model, "config", None), "hidden_size", None) or 64
    return min(8192, max(1024, 2**18 // int(width)))
