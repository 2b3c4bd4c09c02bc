"""−log F of a prompt by sequential Monte Carlo: the least weighted reverse KL that any policy can have,
what `kl` in the metrics can reach."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from multiref._logspace import check_weights
from multiref.models.particles import walk
from multiref.models.sampling import encode_prompts, end_ids
from multiref.models.spec import Generation

ISLANDS = 8  # independent estimates, whose spread is the error


def estimate_disagreement(
    models: Sequence[Any],
    tokenizer: Any,
    prompt: Any,
    *,
    new_tokens: int,
    weights: Any = None,
    particles: int = 64,
    seed: int = 0,
    ends: Sequence[int] | None = None,
) -> tuple[float, float]:
    r"""(−log F, its standard error) for completions of exactly `new_tokens` tokens or an end token before,
    by particles that file every end (`models.particles.walk`; docs/decoding.md).

    Each island's sum is unbiased for F, and the error is the spread over √islands: `particles` are all together.
    −log of the mean is too large on average by half the square of the error. The models share one vocabulary.

    Args:
        prompt: a string or chat messages. weights: [K] of the models; None: uniform. seed: of all draws.
        ends: token ids that end a completion; None: those of the first model and the tokenizer.
    """
    w = check_weights(weights, len(models))
    present = [k for k in range(len(models)) if float(w[k]) > 0]
    if len(present) == 1:
        return 0.0, 0.0
    (context,) = encode_prompts(tokenizer, [prompt])
    filed = walk(
        [models[k] for k in present],
        context,
        w[present],
        ends=end_ids(models[0], tokenizer) if ends is None else ends,
        generation=Generation(new_tokens),
        particles=(ISLANDS, max(1, particles // ISLANDS)),
        generator=torch.Generator(next(models[0].parameters()).device).manual_seed(seed),
    )
    values = filed.log_estimates
    log_f = float(values.logsumexp(0)) - math.log(ISLANDS)
    return -log_f, float((values - log_f).exp().std()) / ISLANDS**0.5
