"""All answers to a prompt with their exact probabilities: V first words times V second words, real softmax probabilities,
nothing renormalised."""

from typing import Any

import torch
from torch import Tensor

from multiref.models import Generation, Reader


@torch.no_grad()
def answer_logps(model: Any, prompt_ids: Tensor, *, prompts_at_once: int = 128) -> Tensor:
    r"""[N, T] prompts of one length → [N, V²] float64: log π(y₁ y₂ | x) of every answer of two tokens, the second of which
    runs fastest.

        log π(y₁ y₂ | x) = log π(y₁ | x) + log π(y₂ | x, y₁)

    The prompt is read once, then each of the V first tokens after it; log-softmax in float64, so that the V² probabilities sum
    to one to rounding.
    """
    training = model.training
    model.eval()
    try:
        return torch.cat([_block(model, block) for block in prompt_ids.split(prompts_at_once)])
    finally:
        model.train(training)


def _block(model: Any, prompt_ids: Tensor) -> Tensor:
    size = model.config.vocab_size
    reader = Reader(model, prompt_ids.tolist(), size, Generation(2), 0)
    first = reader.read_prompts()[::size].double().log_softmax(-1)
    tokens = torch.arange(size, device=prompt_ids.device).repeat(len(first))
    second = reader.read(tokens).double().log_softmax(-1)
    return torch.flatten(first[:, :, None] + second.view(len(first), size, size), 1)
