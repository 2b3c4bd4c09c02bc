"""The names-* models as an enumerable world: names of at most two letters, 703 of them; or three, 18,279."""

from collections.abc import Sequence
from typing import Any

import torch

from tests.training.world import World

LETTERS = 27  # token 0 is start, end and padding


@torch.inference_mode()
def names_world(models: Sequence[Any], letters: int = 2, mixture: bool = False, seed: int = 0) -> World:
    """ "" (0 0 …), one letter (x 0 …), …, `letters` letters, the end forced after the last;
    renormalised by what is left, which is nothing but rounding.

    The reward of a name is a number in [0, 1] drawn for it. mixture: one more reference, the even mixture of the models.
    """
    answers = torch.cartesian_prod(*[torch.arange(LETTERS)] * letters)
    ended = (answers == 0).cumsum(1) > 0
    names = ~((answers != 0) & ended).any(1)
    support = names.nonzero()[:, 0]
    logps = torch.stack([_logps(model.double(), answers[support]) for model in models])
    if mixture:
        logps = torch.cat([logps, logps.logsumexp(0, keepdim=True)])
    reward = torch.rand(len(support), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return World(LETTERS, letters, logps - logps.logsumexp(-1, keepdim=True), reward, support)


def _logps(model: Any, answers: torch.Tensor) -> torch.Tensor:
    """[Y]: Σ_t log p(a_t | start, a_<t) up to and with the first end; what follows it is certain."""
    prefixed = torch.cat([torch.zeros_like(answers[:, :1]), answers], dim=1)
    steps = torch.cat([model(rows[:, :-1]).logits.log_softmax(-1) for rows in prefixed.split(4096)])
    each = steps.gather(-1, answers[..., None])[..., 0]
    after = (answers == 0).cumsum(1) - (answers == 0).long() > 0
    return each.masked_fill(after, 0.0).sum(1)
