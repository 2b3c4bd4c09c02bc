"""Distillation from K weighted teachers: where the states come from that the student is corrected at, and how far it is from the floor.

With reward zero the regularizer is the whole objective: Σ_k w_k KL(π‖π_k), per prompt its own weights. Its floor is −log F, the teachers' disagreement; a
student at the floor is the normalised geometric pool of the teachers, or the teacher itself where a prompt is routed to one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from multiref._logspace import check_weights, weighted_sum
from multiref.errors import ArgumentError
from multiref.models.encoding import Encoded, encode_many
from multiref.references.rollouts import Rollout
from multiref.training.online.rollout import prompt_ids, sample

__all__ = ["TextStates", "floor_by_smc"]


class TextStates:
    """A sampler for the penalty `state_by_state`: for a share of the prompts the states along a given text, for the rest those that the student visits.

    At states of a text the student's own mistakes do not compound, so a student far from its teachers learns there first; states of its own are what
    it will be used at (Agarwal et al., 2024, GKD). With one fixed share the fixed point, for a class that contains it, is the same: every state's pool.

    Args:
        texts: {prompt: text that follows it}; prompts without one are sampled.
        share: of the prompts, from 0 (all on-policy) to 1.
        max_new_tokens: where either kind is cut.
    """

    def __init__(self, texts: Mapping[Any, str], *, share: float, max_new_tokens: int, end: bool = True) -> None:
        if not 0 <= share <= 1:
            raise ArgumentError(f"share: expected a number from 0 to 1, found {share}.")
        self.texts, self.share, self.max_new_tokens, self.end = dict(texts), share, max_new_tokens, end

    def __call__(self, model: Any, tokenizer: Any, prompts: Sequence[Any]) -> list[Rollout]:
        given = [prompt in self.texts and float(torch.rand(())) < self.share for prompt in prompts]
        mine = [prompt for prompt, text in zip(prompts, given) if not text]
        sampled = iter(sample(model, tokenizer, mine, group=1, max_new_tokens=self.max_new_tokens) if mine else [])
        return [self._of_text(tokenizer, prompt) if text else next(sampled) for prompt, text in zip(prompts, given)]

    def _of_text(self, tokenizer: Any, prompt: Any) -> Rollout:
        text = self.texts[prompt]
        (encoded,) = encode_many(tokenizer, [(prompt, (text,))], end=self.end)
        ids = encoded.completions[0][: self.max_new_tokens]
        return Rollout(prompt, (text,), encoded.prompt_ids, (ids,), (len(ids) == len(encoded.completions[0]) and self.end,))


@torch.inference_mode()
def floor_by_smc(
    models: Sequence[Any],
    tokenizer: Any,
    prompt: Any,
    *,
    new_tokens: int,
    weights: Any = None,
    particles: int = 64,
    seed: int = 0,
) -> tuple[float, float]:
    r"""(−log F, its standard error) for completions of exactly `new_tokens` tokens or an end token before, by sequential Monte Carlo.

        propose v ∼ ∏_k π_k(v|s)^{w_k} / F_t(s),   weigh by F_t(s),   resample where the effective sample size falls under half

    The product of the steps' mean weights is unbiased for F (theory 6.4); the error is that of log F̂ from the spread of its particles' weights,
    of first order. The models share one vocabulary.
    """
    from multiref.training.online.rollout import end_ids

    w = check_weights(weights, len(models))
    ends = set(end_ids(models[0], tokenizer))
    device = next(models[0].parameters()).device
    generator = torch.Generator().manual_seed(seed)
    (context,) = prompt_ids(tokenizer, [prompt])
    ids = torch.tensor([context] * particles, device=device)
    alive = torch.ones(particles, dtype=torch.bool)
    log_weight, log_f, variance = torch.zeros(particles, dtype=torch.float64), 0.0, 0.0
    for _ in range(new_tokens):
        pool = weighted_sum(torch.stack([_next_logps(model, ids) for model in models]), w[:, None, None])
        log_mass = pool.logsumexp(-1)
        log_weight = log_weight + torch.where(alive, log_mass, 0.0)
        token = torch.multinomial((pool - log_mass[:, None]).exp(), 1, generator=generator)[:, 0]
        token = torch.where(alive, token, torch.zeros_like(token))
        ids = torch.cat([ids, token.to(device)[:, None]], 1)
        alive = alive & torch.tensor([int(t) not in ends for t in token])
        p = log_weight.softmax(0)
        if float(1 / (p**2).sum()) < particles / 2:
            log_f += float(log_weight.logsumexp(0)) - torch.tensor(float(particles)).log().item()
            variance += float(particles * (p**2).sum() - 1) / particles
            chosen = torch.multinomial(p, particles, replacement=True, generator=generator)
            ids, alive, log_weight = ids[chosen.to(device)], alive[chosen], torch.zeros(particles, dtype=torch.float64)
        if not bool(alive.any()):
            break
    p = log_weight.softmax(0)
    log_f += float(log_weight.logsumexp(0)) - torch.tensor(float(particles)).log().item()
    variance += float(particles * (p**2).sum() - 1) / particles
    return -log_f, variance**0.5


def _next_logps(model: Any, ids: Tensor) -> Tensor:
    """[particles, V] float64 on the CPU: log-probabilities of the next token."""
    return model(input_ids=ids, use_cache=False).logits[:, -1].double().log_softmax(-1).cpu()


def held_out_loss(model: Any, encoded: Sequence[Encoded]) -> float:
    """Nats per token of the completions, under the model."""
    from multiref.models import score_tokens

    logps = torch.cat([x.double() for x in score_tokens(model, encoded)])
    return float(-logps.mean())
