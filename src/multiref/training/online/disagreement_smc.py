"""−log F of a prompt by sequential Monte Carlo: the least weighted reverse KL that any policy can have,
what `kl` in the metrics can reach."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from multiref._logspace import check_weights, weighted_sum
from multiref.models.sampling import encode_prompts, end_ids


@torch.inference_mode()
def estimate_disagreement(
    models: Sequence[Any],
    tokenizer: Any,
    prompt: Any,
    *,
    new_tokens: int,
    weights: Any = None,
    particles: int = 64,
    seed: int = 0,
) -> tuple[float, float]:
    r"""(−log F, its standard error) for completions of exactly `new_tokens` tokens or an end token before,
    by sequential Monte Carlo.

        propose v ∼ ∏_k π_k(v|s)^{w_k} / F_t(s),   weigh by F_t(s),   resample where the effective sample size falls under half

    The product of the steps' mean weights is unbiased for F (docs/theory.md 6), so that its −log is too large on average,
    by half its variance; the error is that of log F̂ from the spread of its particles' weights, of first order.
    The models share one vocabulary.
    """
    w = check_weights(weights, len(models))
    present = [k for k in range(len(models)) if float(w[k]) > 0]
    (context,) = encode_prompts(tokenizer, [prompt])
    walks = [_Walk(models[k], context) for k in present]
    ends = torch.tensor(end_ids(models[0], tokenizer), dtype=torch.long)
    generator = torch.Generator().manual_seed(seed)
    alive = torch.ones(particles, dtype=torch.bool)
    log_weight, log_f, variance = torch.zeros(particles, dtype=torch.float64), 0.0, 0.0
    for step in range(new_tokens):
        pool = weighted_sum(torch.stack([walk.next_logps() for walk in walks]), w[present, None, None]).expand(particles, -1)
        log_mass = pool.logsumexp(-1)
        log_weight = log_weight + torch.where(alive, log_mass, 0.0)
        token = torch.multinomial((pool - log_mass[:, None]).exp(), 1, generator=generator)[:, 0]
        alive = alive & ~torch.isin(token, ends)
        p = log_weight.softmax(0)
        kept = torch.arange(particles)
        if float(1 / (p**2).sum()) < particles / 2 or step == new_tokens - 1 or not bool(alive.any()):
            log_f += float(log_weight.logsumexp(0)) - math.log(particles)
            variance += float(particles * (p**2).sum() - 1) / particles
            kept = torch.multinomial(p, particles, replacement=True, generator=generator)
            log_weight = torch.zeros_like(log_weight)
        alive, token = alive[kept], token[kept]
        if not bool(alive.any()):
            break
        for walk in walks:
            walk.go_on(kept, token)
    return -log_f, max(variance, 0.0) ** 0.5  # equal weights can round below zero


class _Walk:
    """Particles of one model: what it says of the next token, with its cache where it has one.
    Before the first token they are one row, the prompt."""

    def __init__(self, model: Any, context: Sequence[int]) -> None:
        self.model, self.device = model, next(model.parameters()).device
        self.ids = torch.tensor([list(context)], device=self.device)
        self.cache: Any = None

    def next_logps(self) -> Tensor:
        """[particles, V] float64 on the CPU; [1, V] after the prompt."""
        new = self.ids if self.cache is None else self.ids[:, -1:]
        out = self.model(input_ids=new, past_key_values=self.cache, use_cache=True)
        cache = getattr(out, "past_key_values", None)
        self.cache = cache if hasattr(cache, "reorder_cache") else None
        logits: Tensor = out.logits[:, -1]
        return logits.double().log_softmax(-1).cpu()

    def go_on(self, kept: Tensor, token: Tensor) -> None:
        """The particles at `kept`, each with its next token."""
        kept = kept.to(self.device) if len(self.ids) > 1 else torch.zeros_like(kept, device=self.device)
        self.ids = torch.cat([self.ids[kept], token.to(self.device)[:, None]], 1)
        if self.cache is not None:
            self.cache.reorder_cache(kept)
