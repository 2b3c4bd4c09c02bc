"""Completions drawn token by token, their ends too, from a mixture or a pool of K models in lockstep, and what each says of
them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multiref._logspace import NEG_INF, weighted_sum
from multiref.models.draws import check_numbers, draw_one
from multiref.models.encoding import Ids
from multiref.models.lockstep import Lockstep, at_rest
from multiref.models.spec import Generation
from multiref.pools import power_mean


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
        way = _Way(rows, len(models), weights.to(step.device), pooled, order, weighed, generator)
        way.waits_for_nothing = step.patience == 1
        end = torch.tensor(list(ends), dtype=torch.long, device=step.device)
        room = None if patience is None else patience.to(step.device)
        for t in range(generation.max_new_tokens):
            said = step.logps()
            token = way.draw(said, way.proposal(said, end if t < generation.min_new_tokens else None))
            way.done[way.alive] |= torch.isin(token, end)
            if room is not None:
                way.done |= weighted_sum(way.logps, way.weights[:, None], way.full) - way.parts[0] < room
            if t == generation.max_new_tokens - 1:
                break
            if t % step.patience == step.patience - 1:
                going = ~way.done[way.alive]
                left = int(going.sum())
                if not left:
                    break
                if left <= len(way.alive) // 2:
                    places = going.nonzero()[:, 0]
                    step.keep(places)
                    way.alive, token = way.alive[places], token[places]
            step.read(token)
        return way.descent(set(ends), step.tokens)


class _Way:
    """Rows on their way. alive: those that models still read; done [N]: ended or given up; logps [K, N], parts [1 or K, N]: log
    π_k and log q so far, of each component where q is a mixture. waits_for_nothing: to look at a number costs nothing."""

    waits_for_nothing = True

    def __init__(
        self,
        rows: int,
        models: int,
        weights: Tensor,
        pooled: bool,
        order: float,
        weighed: Tensor | None,
        generator: torch.Generator,
    ) -> None:
        device = weights.device
        self.weights, self.pooled, self.order, self.generator = weights, pooled, order, generator
        present = torch.arange(models, device=device)  # places, not masks, whose size an accelerator would be waited for
        self.weighed = present if weighed is None else present[weighed.to(device)]
        self.full, self.present = bool((weights > 0).all()), present[weights > 0]
        self.label = draw_one(weights.expand(rows, -1).float(), generator)[:, 0]
        self.alive = torch.arange(rows, device=device)
        self.logps = torch.zeros(models, rows, dtype=torch.float64, device=device)
        self.parts = torch.zeros(1 if pooled else models, rows, dtype=torch.float64, device=device)
        self.uncovered = torch.zeros((), dtype=torch.bool, device=device)
        self.done = torch.zeros(rows, dtype=torch.bool, device=device)
        self.drawn: list[Tensor] = []

    def proposal(self, said: Tensor, forbidden: Tensor | None) -> Tensor:
        """[K, B, V] → [1 or K, B, V]: log q of the next token, of each component; the forbidden tokens have none of it."""
        w = self.weights
        if self.pooled:
            known = None if self.waits_for_nothing else self.full
            one = power_mean(said, w, self.order, known) if self.order else weighted_sum(said, w[:, None, None], self.full)
            q = one[None]
        else:
            q, judged = said, said[self.weighed] > NEG_INF
            mass = judged.any(0) if self.order > 0 else judged.all(0)
            self.uncovered |= (mass & (said[self.present] == NEG_INF).all(0) & ~self.done[self.alive][:, None]).any()
        if forbidden is not None:
            q = q.index_fill(-1, forbidden, NEG_INF)
        if self.pooled or forbidden is not None:
            q = (q - q.logsumexp(-1, keepdim=True)).nan_to_num(nan=NEG_INF, neginf=NEG_INF)
        return q

    def draw(self, said: Tensor, q: Tensor) -> Tensor:
        """[B]: the next token of each row, of the component that the row is drawn from."""
        label = self.label[self.alive][None, :, None]
        own = q[0] if self.pooled else q.gather(0, label.expand(1, -1, q.shape[-1]))[0]
        lost = ~(own > NEG_INF).any(-1, keepdim=True)  # nothing goes on
        token = draw_one(torch.where(lost, 0.0, own).softmax(-1), self.generator)
        here = ~self.done[self.alive]
        pick = token[None].expand(len(said), -1, -1)
        self.logps[:, self.alive] += torch.where(here, said.gather(-1, pick)[..., 0], 0.0).double()
        self.parts[:, self.alive] += torch.where(here, q.gather(-1, pick[: len(q)])[..., 0], 0.0).double()
        full = torch.full_like(self.label, -1)
        full[self.alive] = torch.where(here, token[:, 0], -1)
        self.drawn.append(full)
        return token[:, 0]

    def descent(self, ends: set[int], forwarded: int) -> Descent:
        """What was drawn, on the CPU."""
        check_numbers(self.logps)
        ids = [tuple(v for v in row if v >= 0) for row in torch.stack(self.drawn, 1).tolist()]
        log_q = self.parts[0] if self.pooled else (self.weights.log()[:, None] + self.parts).logsumexp(0)
        ended = [row[-1] in ends for row in ids]
        return Descent(ids, ended, self.logps.cpu(), log_q.cpu(), bool(self.uncovered), forwarded)
