"""Particles on K models in lockstep, that file at every step the completion that would end there (the end branch,
docs/decoding.md). They know log-probabilities alone; what a completion is worth beyond that is another room's affair."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from multiref._logspace import NEG_INF, weighted_sum
from multiref._progress import each_told
from multiref.models.draws import check_numbers, draw_one
from multiref.models.encoding import Ids
from multiref.models.lockstep import Lockstep, at_rest
from multiref.models.spec import Generation
from multiref.weighting.particles import effective_size, resample

Resampling = Literal["adaptive", "never", "always"]
Twist = Callable[[Sequence[Ids]], Tensor | None]  # tokens so far of each row → log ψ [rows], finite; None: as it was
NOTHING = 1e-9  # of the mass so far: what is left to find cannot be seen


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
    with at_rest(models):
        step = Lockstep(models, context, particles[0] * particles[1], generation.max_new_tokens)
        state = _Particles(particles, torch.tensor(list(ends), dtype=torch.long, device=step.device), generation, generator)
        w = weights.to(step.device)[:, None, None]
        for t in each_told(range(generation.max_new_tokens), "tokens", generation.max_new_tokens):
            pool = weighted_sum(step.logps(), w, full=True)
            state.file(pool, t)
            token = state.go_on(pool, flat, t)
            asked = t % step.patience == step.patience - 1
            if t == generation.max_new_tokens - 1 or (asked and state.over(twist)):
                state.keep(token, state.rows)
                break
            state.foresee(token, twist, asked)
            parent = state.select(resampling) if asked and resampling != "never" else None
            if parent is not None:
                step.keep(parent)
                token = token[parent]
            state.keep(token, state.rows if parent is None else parent)
            step.read(token)
        return state.filed(step.tokens)


class _Particles:
    """What particles weigh, what they filed, and where they came from. live [I, n]: log W; total [I]: log of what an island
    filed; guess [I, n]: log ψ; said [I·n, t]: tokens so far, of those that a twist asks about."""

    def __init__(self, particles: tuple[int, int], end: Tensor, generation: Generation, generator: torch.Generator) -> None:
        self.islands, self.n = particles
        self.end, self.generation, self.generator = end, generation, generator
        self.rows = torch.arange(self.islands * self.n, device=end.device)
        self.first = self.n * torch.arange(self.islands, device=end.device)[:, None]
        self.live = torch.zeros(self.islands, self.n, dtype=torch.float64, device=end.device)
        self.total = torch.full((self.islands,), NEG_INF, dtype=torch.float64, device=end.device)
        self.guess, self.said = torch.zeros_like(self.live), self.rows.new_empty(len(self.rows), 0)
        self.mass: list[Tensor] = []
        self.guesses: list[Tensor] = []
        self.closed: list[Tensor] = []
        self.tokens: list[Tensor] = []
        self.parents: list[Tensor] = []

    def file(self, pool: Tensor, t: int) -> None:
        """The completions that end after t tokens; which end closes each is drawn in proportion."""
        closing = pool[:, self.end] if t >= self.generation.min_new_tokens else pool[:, self.end].fill_(NEG_INF)
        self.mass.append(self.live + closing.logsumexp(-1).double().view_as(self.live))
        self.closed.append(self.rows.new_zeros(len(self.rows)))
        if len(self.end):  # where none has mass one of them is named, and weighs nothing
            self.closed[-1] = self.end[draw_one(closing.softmax(-1), self.generator)[:, 0]]
        self.guesses.append(self.guess)
        self.total = torch.logaddexp(self.total, self.mass[-1].logsumexp(-1))

    def go_on(self, pool: Tensor, flat: float, t: int) -> Tensor:
        """[I·n]: a token of each that is no end. Where no end may follow, a flat q would find none."""
        before_end = self.generation.min_new_tokens <= t + 1 < self.generation.max_new_tokens
        token, ratio = propose(pool.index_fill(-1, self.end, NEG_INF), flat if before_end else 0.0, self.generator)
        self.live = self.live + ratio.double().view_as(self.live)
        return token

    def over(self, twist: Twist | None) -> bool:
        """Whether what lives on is nothing beside what was filed. A twist knows of mass that comes later."""
        least = self.total + math.log(NOTHING) if twist is None else NEG_INF
        return bool((self.live.logsumexp(-1) <= least).all())

    def foresee(self, token: Tensor, twist: Twist | None, asked: bool) -> None:
        """log ψ of the tokens so far."""
        if twist is None:
            return
        self.said = torch.cat([self.said, token[:, None]], 1)
        found = twist([tuple(row) for row in self.said.tolist()]) if asked else None
        self.guess = self.guess if found is None else found.to(self.live).view_as(self.live)

    def select(self, resampling: Resampling) -> Tensor | None:
        """[I·n]: the rows that go on, resampled by W ψ within islands; None: all as they are."""
        judged = self.live + self.guess
        low = effective_size(judged) < self.n / 2 if resampling == "adaptive" else torch.full_like(self.total, 1).bool()
        if not bool(low.any()):
            return None
        kept, judged = resample(judged, low, self.generator)
        self.guess = self.guess.gather(1, kept)
        self.live = judged - self.guess
        parent = (kept + self.first).flatten()
        self.said = self.said[parent] if self.said.shape[1] else self.said
        return parent

    def keep(self, token: Tensor, parent: Tensor) -> None:
        """This token of each row, after the row of the step before that it came from."""
        self.tokens.append(token)
        self.parents.append(parent)

    def filed(self, forwarded: int) -> Filed:
        """All of it, on the CPU; what still lives after the last token was cut."""
        whole = len(self.mass) == self.generation.max_new_tokens
        self.mass.append(self.live if whole else torch.full_like(self.live, NEG_INF))
        self.closed.append(torch.zeros_like(self.rows))
        self.guesses.append(self.guess)
        each = (self.mass, self.guesses, self.tokens, self.parents, self.closed)
        mass, twisted, drawn, came, closed = (torch.stack(one).cpu() for one in each)
        check_numbers(mass)
        return Filed(mass, twisted, drawn, came, closed, forwarded)


def propose(pool: Tensor, flat: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """log g [N, V] → tokens of q [N], log g/q of them [N]: −∞ where nothing goes on."""
    shape = torch.where((pool > NEG_INF).any(-1, keepdim=True), pool, 0.0)
    proposal = shape.softmax(-1)
    if flat:
        proposal = (1 - flat) * proposal + flat * (shape / 2).softmax(-1)
    token = draw_one(proposal, generator)
    return token[:, 0], (pool.gather(1, token) - proposal.gather(1, token).log())[:, 0]
