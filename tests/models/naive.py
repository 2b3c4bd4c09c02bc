"""The independent oracle: one completion at a time, no padding, no batching, no sharing, plain logits in float64."""

from typing import Any

import torch


def naive_token_logps(model: Any, context: tuple[int, ...], completion: tuple[int, ...]) -> torch.Tensor:
    """log p of each completion token, from a copy of the model in float64."""
    import copy

    exact = copy.deepcopy(model).double().eval()
    ids = torch.tensor([list(context) + list(completion)])
    with torch.no_grad():
        logps = exact(input_ids=ids).logits.double().log_softmax(-1)[0]
    return torch.stack([logps[len(context) - 1 + t, token] for t, token in enumerate(completion)])


def naive_logps(model: Any, batch: Any) -> torch.Tensor:
    """Sums over each completion of each `Encoded`, in order."""
    return torch.stack(
        [naive_token_logps(model, item.context(i), ids).sum() for item in batch for i, ids in enumerate(item.completions)]
    )
