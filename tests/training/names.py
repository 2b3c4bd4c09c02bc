"""The names-* models as an enumerable world: names of at most two letters, 703 of them."""

from collections.abc import Sequence
from typing import Any

import torch

from tests.training.world import World

LETTERS = 27  # token 0 is start, end and padding


@torch.inference_mode()
def names_world(models: Sequence[Any], seed: int = 0) -> World:
    """ "" (0 0), one letter (x 0) and two (x y, the end forced): p(0), p(x) p(0|x), p(x) p(y|x). They sum to one, so nothing is cut off.

    The reward of a name is a number in [0, 1] drawn for it.
    """
    logps = torch.stack([_pairs_of_tokens(model) for model in models])
    support = torch.tensor([a * LETTERS + b for a in range(LETTERS) for b in range(LETTERS) if a > 0 or b == 0])
    kept = logps[:, support]
    reward = torch.rand(len(support), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return World(LETTERS, 2, kept - kept.logsumexp(-1, keepdim=True), reward, support)


def _pairs_of_tokens(model: Any) -> torch.Tensor:
    """[27 · 27]: log p of the first two tokens; after the end, the end again."""
    model = model.double()
    first = model(torch.tensor([[0]])).logits[0, 0].log_softmax(-1)
    second = model(torch.tensor([[0, x] for x in range(LETTERS)])).logits[:, 1].log_softmax(-1)
    second[0] = torch.where(torch.arange(LETTERS) == 0, 0.0, -torch.inf)
    return (first[:, None] + second).flatten()
