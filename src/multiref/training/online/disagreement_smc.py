"""−log F of a prompt by sequential Monte Carlo: the least weighted reverse KL that any policy can have,
what `kl` in the metrics can reach."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from multiref._logspace import check_weights, weighted_sum
from multiref.models.cache import cache_argument, cache_of, takes
from multiref.models.sampling import encode_prompts, end_ids

ISLANDS = 8  # independent estimates, whose spread is the error
NOTHING = 1e-9  # of the mass so far: what is left to find cannot be seen


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
    ends: Sequence[int] | None = None,
) -> tuple[float, float]:
    r"""(−log F, its standard error) for completions of exactly `new_tokens` tokens or an end token before,
    by sequential Monte Carlo in islands of particles (docs/theory.md 6, the end branch).

        g(v) = ∏_k π_k(v|s)^{w_k};   a particle of weight W files the completion that ends here, W Σ_{v ends} g(v), and goes on:
        v ∼ q over what does not end,   W ← W g(v)/q(v),   q = ½ g/Σg + ½ √g/Σ√g,
        and is resampled where the effective sample size of its island falls under half.

    Most of F may sit on completions that end early, by an end that is rarely drawn: so ends are counted, not drawn, and q is
    flatter than g, for a rare token after which the end is likely carries mass too.
    Each island's sum over n particles is unbiased for F, and the error is their spread over √islands: `particles` are all
    together. −log of the mean is too large on average by half the square of the error.
    The models share one vocabulary.

    Args:
        ends: token ids that end a completion; None: those of the first model and the tokenizer.
    """
    w = check_weights(weights, len(models))
    present = [k for k in range(len(models)) if float(w[k]) > 0]
    if len(present) == 1:
        return 0.0, 0.0
    (context,) = encode_prompts(tokenizer, [prompt])
    walks = [_Walk(models[k], context) for k in present]
    end = torch.tensor(list(end_ids(models[0], tokenizer) if ends is None else ends), dtype=torch.long)
    generator = torch.Generator().manual_seed(seed)
    n = max(1, particles // ISLANDS)
    live, filed = torch.zeros(ISLANDS, n, dtype=torch.float64), torch.full((ISLANDS,), -torch.inf, dtype=torch.float64)
    for step in range(new_tokens):
        pool = weighted_sum(torch.stack([walk.next_logps() for walk in walks]), w[present, None, None]).expand(ISLANDS * n, -1)
        counted = pool if step == new_tokens - 1 else pool[:, end]  # at the last place whatever comes is a completion
        filed = torch.logaddexp(filed, (live + counted.logsumexp(-1).view(ISLANDS, n)).logsumexp(-1))
        token, log_ratio = _propose(pool.index_fill(-1, end, -torch.inf), generator)
        live = live + log_ratio.view(ISLANDS, n)
        if step == new_tokens - 1 or bool((live.logsumexp(-1) <= filed + math.log(NOTHING)).all()):
            break
        kept, live = _resampled(live, generator)
        for walk in walks:
            walk.go_on(kept, token[kept])
    values = filed - math.log(n)
    log_f = float(values.logsumexp(0)) - math.log(ISLANDS)
    return -log_f, float((values - log_f).exp().std()) / ISLANDS**0.5


def _propose(pool: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """log g [N, V] → tokens of q [N], log g/q of them [N]: −∞ where nothing goes on."""
    shape = torch.where((pool > -torch.inf).any(-1, keepdim=True), pool, 0.0)
    proposal = (shape.softmax(-1) + (shape / 2).softmax(-1)) / 2
    token = torch.multinomial(proposal, 1, generator=generator)
    return token[:, 0], (pool.gather(1, token) - proposal.gather(1, token).log())[:, 0]


def _resampled(live: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """[I, n] log-weights → (which particles go on [I n], their log-weights), systematically within the islands that need it."""
    islands, n = live.shape
    p = live.softmax(-1)  # NaN where an island is dead: it is left as it is
    low = 1 / p.square().sum(-1, keepdim=True) < n / 2
    places = (torch.arange(n) + torch.rand(islands, 1, generator=generator, dtype=torch.float64)) / n
    edges = p.nan_to_num().cumsum(-1)
    parents = torch.searchsorted(edges / edges[:, -1:].clamp_min(1e-300), places).clamp_max(n - 1)
    kept = torch.where(low, parents, torch.arange(n).expand(islands, n)) + n * torch.arange(islands)[:, None]
    level = live.logsumexp(-1, keepdim=True) - math.log(n)
    return kept.flatten(), torch.where(low, level, live)


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
        out = self.model(input_ids=new, use_cache=True, **cache_argument(takes(self.model), self.cache))
        cache = cache_of(out)
        self.cache = cache if hasattr(cache, "reorder_cache") else None
        logits: Tensor = out.logits[:, -1]
        return logits.double().log_softmax(-1).cpu()

    def go_on(self, kept: Tensor, token: Tensor) -> None:
        """The particles at `kept`, each with its next token."""
        kept = kept.to(self.device) if len(self.ids) > 1 else torch.zeros_like(kept, device=self.device)
        self.ids = torch.cat([self.ids[kept], token.to(self.device)[:, None]], 1)
        if self.cache is not None:
            self.cache.reorder_cache(kept)
