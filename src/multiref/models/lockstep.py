"""K models of one vocabulary, advanced together after one prompt, one cache each; and what can be drawn from them together.

    walk      particles that file, at every step, the completion that would end there     (the end branch, docs/decoding.md)
    descend   completions drawn token by token, their ends too, from a mixture or a pool of the models

Both know log-probabilities alone; what a completion is worth beyond that is another room's affair.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from multiref._logspace import NEG_INF, weighted_sum
from multiref.models.architecture import evaluating
from multiref.models.sampling import Reader
from multiref.models.spec import Generation
from multiref.pools import power_pool
from multiref.weighting.particles import effective_size, resample

Ids = tuple[int, ...]
Resampling = Literal["adaptive", "never", "always"]
Twist = Callable[[Sequence[Ids]], Tensor | None]  # tokens so far of each row → log ψ [rows], finite; None: as it was
NOTHING = 1e-9  # of the mass so far: what is left to find cannot be seen
SELDOM = 8  # on an accelerator every question (has all ended? resample?) waits for it: asked every so many tokens


class Lockstep:
    """What K models say of the next token, for rows that began as one prompt.

    Rows are re-selected, every cache with them. tokens: so many were read, by all models together.
    """

    def __init__(self, models: Sequence[Any], context: Ids, rows: int, new_tokens: int) -> None:
        generation = Generation(new_tokens)
        self.readers = [Reader(model, [context], rows, generation, 0) for model in models]
        self.rows, self.tokens, self.device = rows, len(models) * len(context), self.readers[0].device
        self.patience = 1 if self.device.type == "cpu" else SELDOM
        self._logits = [reader.read_prompts() for reader in self.readers]

    def logps(self) -> Tensor:
        """[K, rows, V], float32 at least: log π_k of the next token."""
        width = min(logits.shape[-1] for logits in self._logits)  # beyond it: rows that only pad a vocabulary
        each = [logits[..., :width].to(torch.promote_types(logits.dtype, torch.float32)) for logits in self._logits]
        return torch.stack([logits.log_softmax(-1).to(self.device) for logits in each])

    def read(self, tokens: Tensor) -> None:
        """One more token of each row."""
        self._logits = [reader.read(tokens.to(reader.device)) for reader in self.readers]
        self.tokens += len(self.readers) * self.rows

    def keep(self, rows: Tensor) -> None:
        """These rows go on, in this order; one may go on more than once. To be called before `read`."""
        for reader in self.readers:
            reader.keep(rows.to(reader.device))
        self.rows = len(rows)


@contextmanager
def at_rest(models: Sequence[Any]) -> Iterator[None]:
    """Evaluation mode, nothing recorded for gradients."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        for model in models:
            stack.enter_context(evaluating(model))
        yield


def cache_bytes(models: Sequence[Any], rows: int, length: int) -> int:
    """Of so many rows of so many tokens, in all caches, and the logits of one step; 0 of a model whose configuration does not
    say."""
    total = 0
    for model in models:
        config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
        heads = getattr(config, "num_attention_heads", None) or 0
        kept = getattr(config, "num_key_value_heads", None) or heads
        width = getattr(config, "head_dim", None) or (getattr(config, "hidden_size", 0) or 0) // max(heads, 1)
        size = next(model.parameters()).element_size()
        cached = 2 * (getattr(config, "num_hidden_layers", 0) or 0) * kept * width * length * size
        total += rows * (cached + 3 * 4 * int(getattr(config, "vocab_size", 0) or 0))
    return total


@dataclass(frozen=True)
class Filed:
    """What particles filed.

    log_mass [S, I, n]: entry (t, i, j) is the completion of t tokens of particle (i, j), then an end; the last of the S entries
        is what was cut after all its tokens.
    log_twist [S, I, n]: log ψ of the particle when it filed; 0 without a twist. No part of the mass.
    tokens, parents [T, I·n]: row r's token t, and the row of token t − 1 that it came from. ends [S, I·n]: the end token.
    forwarded: tokens that the models read.
    """

    log_mass: Tensor
    log_twist: Tensor
    tokens: Tensor
    parents: Tensor
    ends: Tensor
    forwarded: int

    @property
    def log_estimates(self) -> Tensor:
        """[I]: the log of each island's estimate, (1/n) Σ of what it filed."""
        total: Tensor = self.log_mass.logsumexp((0, 2)) - math.log(self.log_mass.shape[-1])
        return total

    def paths(self, entries: Sequence[tuple[int, int]]) -> list[tuple[Ids, bool, int]]:
        """(token ids, end included; whether it ended; the first particle that it descends from) of entries (stage, row)."""
        tokens, parents, ends = self.tokens.tolist(), self.parents.tolist(), self.ends.tolist()
        found = []
        for stage, row in entries:
            cut = stage == len(ends) - 1
            ids = [] if cut else [ends[stage][row]]
            for step in reversed(range(len(tokens) if cut else stage)):
                ids.append(tokens[step][row])
                row = parents[step][row]
            found.append((tuple(reversed(ids)), not cut, row))
        return found


def walk(
    models: Sequence[Any],
    context: Ids,
    weights: Tensor,
    *,
    ends: Sequence[int],
    generation: Generation,
    particles: tuple[int, int],
    generator: torch.Generator,
    flat: float = 0.5,
    resampling: Resampling = "adaptive",
    twist: Twist | None = None,
) -> Filed:
    r"""Particles for F = Σ_y ∏_k π_k(y)^{w_k}, in islands.

        g(v) = ∏_k π_k(v|s)^{w_k};   a particle of weight W files the completion that ends here, W Σ_{v ends} g(v), and goes on:
        v ∼ q over what does not end,   W ← W g(v)/q(v),   q = (1 − c) g/Σg + c √g/Σ√g

    Ends are counted, not drawn: most of F may sit on completions that end early, by an end that is rarely drawn. With flat
    c = 0 W only shrinks, so an island's estimate is at most 1; c = ½ also finds a token that is rare under the pool and after
    which the end is likely. Unbiased for every c, resampled or not. Where no end may follow, v ∼ g/Σg.

    Args:
        weights: [K] > 0 on the simplex.
        generation: max_new_tokens and min_new_tokens, before which nothing ends; the rest of it is not looked at.
        particles: (islands, particles of each).
        generator: on the models' device.
        resampling: of an island whose effective sample size is below half, of none, or of all at every step.
        twist: ψ > 0 of the tokens so far, by which particles are resampled: W ψ in place of W. It changes which particles go
            on, and no expectation: W is divided by it again (it telescopes out).
    """
    (islands, n), length = particles, generation.max_new_tokens
    with at_rest(models):
        step = Lockstep(models, context, islands * n, length)
        end = torch.tensor(list(ends), dtype=torch.long, device=step.device)
        rows = torch.arange(islands * n, device=step.device)
        live = torch.zeros(islands, n, dtype=torch.float64, device=step.device)
        total = torch.full((islands,), NEG_INF, dtype=torch.float64, device=step.device)
        filed, chosen, tokens, parents, guesses = [], [], [], [], []
        guess, said = torch.zeros_like(live), rows.new_empty(len(rows), 0)
        for t in range(length):
            pool = weighted_sum(step.logps(), weights.to(step.device)[:, None, None])
            closing = pool[:, end] if t >= generation.min_new_tokens else pool[:, end].fill_(NEG_INF)
            filed.append(live + closing.logsumexp(-1).double().view(islands, n))
            chosen.append(end[(closing + _gumbel(closing, generator)).argmax(-1)] if len(end) else torch.zeros_like(rows))
            guesses.append(guess)
            total = torch.logaddexp(total, filed[-1].logsumexp(-1))
            before_end = generation.min_new_tokens <= t + 1 < length  # else there is no end that a flat q would find
            token, ratio = propose(pool.index_fill(-1, end, NEG_INF), flat if before_end else 0.0, generator)
            live = live + ratio.double().view(islands, n)
            asked = t % step.patience == step.patience - 1
            least = total + math.log(NOTHING) if twist is None else NEG_INF  # a twist knows of mass that comes later
            if t == length - 1 or (asked and bool((live.logsumexp(-1) <= least).all())):
                tokens.append(token)
                parents.append(rows)
                break
            if twist is not None:
                said = torch.cat([said, token[:, None]], 1)
                found = twist([tuple(row) for row in said.tolist()]) if asked else None
                guess = guess if found is None else found.to(live).view(islands, n)
            judged = live + guess
            low = effective_size(judged) < n / 2 if resampling == "adaptive" else torch.full_like(total, 1, dtype=torch.bool)
            parent = rows
            if resampling != "never" and asked and bool(low.any()):
                kept, judged = resample(judged, low, generator)
                guess = guess.gather(1, kept)
                live = judged - guess
                parent = (kept + n * torch.arange(islands, device=step.device)[:, None]).flatten()
                step.keep(parent)
                said = said[parent] if twist is not None else said
            tokens.append(token[parent])
            parents.append(parent)
            step.read(tokens[-1])
        filed.append(live if len(filed) == length else torch.full_like(live, NEG_INF))
        chosen.append(torch.zeros_like(rows))
        guesses.append(guess)
        each = (filed, guesses, tokens, parents, chosen)
        mass, twisted, drawn, came, closed = (torch.stack(one).cpu() for one in each)
        return Filed(mass, twisted, drawn, came, closed, step.tokens)


def propose(pool: Tensor, flat: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """log g [N, V] → tokens of q [N], log g/q of them [N]: −∞ where nothing goes on."""
    shape = torch.where((pool > NEG_INF).any(-1, keepdim=True), pool, 0.0)
    proposal = shape.softmax(-1)
    if flat:
        proposal = (1 - flat) * proposal + flat * (shape / 2).softmax(-1)
    token = torch.multinomial(proposal, 1, generator=generator)
    return token[:, 0], (pool.gather(1, token) - proposal.gather(1, token).log())[:, 0]


@dataclass(frozen=True)
class Descent:
    """Completions that were drawn token by token.

    ids, ended: of each; None where it was given up on the way. logps [K, N]: log π_k of them. log_proposal [N]: log q.
    uncovered: whether q has no mass somewhere on their way where the target has some.
    """

    ids: list[Ids]
    ended: list[bool]
    logps: Tensor
    log_proposal: Tensor
    uncovered: bool
    forwarded: int


def descend(
    models: Sequence[Any],
    context: Ids,
    weights: Tensor,
    *,
    ends: Sequence[int],
    generation: Generation,
    rows: int,
    generator: torch.Generator,
    pooled: bool,
    order: float = 0.0,
    weighed: Tensor | None = None,
    patience: Tensor | None = None,
) -> Descent:
    r"""`rows` completions from q, and what each model says of them.

        pooled:  q = ∏_t P_ρ(y_t|s_t)/Σ_v P_ρ(v|s_t),  the pool of order ρ renormalised at each token
        else:    q = Σ_k w_k π_k(y), a mixture of whole completions

    Before `min_new_tokens` q gives no mass to an end, and is renormalised.

    Args:
        weights: [K] on the simplex; one-hot: that model alone.
        order: ρ of the pool, q or not; weighed [K]: which models the target weighs, None: all. Together: where it has mass.
        patience: [rows]: a row is given up where Σ_t log Σ_v P_0(v|s_t) falls below it (rejection from the pool, early).
    """
    with at_rest(models):
        step = Lockstep(models, context, rows, generation.max_new_tokens)
        device = step.device
        end = torch.tensor(list(ends), dtype=torch.long, device=device)
        w = weights.to(device)
        label = torch.multinomial(w.expand(rows, -1).float(), 1, generator=generator)[:, 0]
        alive = torch.arange(rows, device=device)
        logps = torch.zeros(len(models), rows, dtype=torch.float64, device=device)
        parts = torch.zeros(1 if pooled else len(models), rows, dtype=torch.float64, device=device)
        uncovered = torch.zeros((), dtype=torch.bool, device=device)
        drawn: list[Tensor] = []
        done = torch.zeros(rows, dtype=torch.bool, device=device)
        for t in range(generation.max_new_tokens):
            said = step.logps()
            q = (power_pool(said, w, order) if order else weighted_sum(said, w[:, None, None]))[None] if pooled else said
            if not pooled:
                judged = said > NEG_INF if weighed is None else said[weighed.to(device)] > NEG_INF
                mass = judged.any(0) if order > 0 else judged.all(0)
                uncovered |= (mass & (said[w > 0] == NEG_INF).all(0) & ~done[alive][:, None]).any()
            if t < generation.min_new_tokens:
                q = q.index_fill(-1, end, NEG_INF)
            if pooled or t < generation.min_new_tokens:
                q = (q - q.logsumexp(-1, keepdim=True)).nan_to_num(nan=NEG_INF, neginf=NEG_INF)
            own = q[0] if pooled else q.gather(0, label[alive][None, :, None].expand(1, -1, q.shape[-1]))[0]
            lost = ~(own > NEG_INF).any(-1, keepdim=True)  # nothing goes on
            token = torch.multinomial(torch.where(lost, 0.0, own).softmax(-1), 1, generator=generator)
            here = ~done[alive]
            pick = token[None].expand(len(said), -1, -1)
            logps[:, alive] += torch.where(here, said.gather(-1, pick)[..., 0], 0.0).double()
            parts[:, alive] += torch.where(here, q.gather(-1, pick[: len(q)])[..., 0], 0.0).double()
            full = torch.full((rows,), -1, dtype=torch.long, device=device)
            full[alive] = torch.where(here, token[:, 0], -1)
            drawn.append(full)
            done[alive] |= torch.isin(token[:, 0], end)
            if patience is not None:
                done |= weighted_sum(logps, w[:, None]) - parts[0] < patience.to(device)
            if t == generation.max_new_tokens - 1:
                break
            if t % step.patience == step.patience - 1:
                going = ~done[alive]
                left = int(going.sum())
                if not left:
                    break
                if left <= len(alive) // 2:
                    places = going.nonzero()[:, 0]
                    step.keep(places)
                    alive, token = alive[places], token[places]
            step.read(token[:, 0])
        ids = [tuple(v for v in row if v >= 0) for row in torch.stack(drawn, 1).tolist()]
        log_q = parts[0] if pooled else (w.log()[:, None] + parts).logsumexp(0)
        closing = set(ends)
        return Descent(ids, [row[-1] in closing for row in ids], logps.cpu(), log_q.cpu(), bool(uncovered), step.tokens)


def _gumbel(like: Tensor, generator: torch.Generator) -> Tensor:
    uniform = torch.rand(like.shape, generator=generator, dtype=torch.float64, device=like.device)
    return -(-uniform.clamp_min(1e-300).log()).log()
