"""The distribution that is sampled from: softmax(logits / temperature), cut by top_k and then top_p, and by nothing else."""

import torch
from torch import Tensor

from multiref.models.spec import Generation


def bend(logits: Tensor, generation: Generation, end: Tensor, drawn: int) -> Tensor:
    """[*, V] → logits of q, float32 at least; at temperature 0 all its mass is on the likeliest token.

    Args:
        end: token ids that end a completion; drawn: how many tokens it has, for `min_new_tokens`.
    """
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if drawn < generation.min_new_tokens:
        scores = scores.index_fill(-1, end, -torch.inf)
    if generation.temperature == 0:
        return torch.full_like(scores, -torch.inf).scatter_(-1, scores.argmax(-1, keepdim=True), 0.0)
    if generation.temperature != 1:
        scores = scores / generation.temperature
    if 0 < generation.top_k < scores.shape[-1]:
        least = scores.topk(generation.top_k).values[..., -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if generation.top_p < 1:
        ordered, places = scores.softmax(-1).sort(descending=True)
        outside = ordered.cumsum(-1) - ordered >= generation.top_p
        scores = scores.masked_fill(torch.empty_like(outside).scatter_(-1, places, outside), -torch.inf)
    return scores
