"""How draws are made: particles that file every end, independent completions weighed once, rejection."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from multiref import exact
from multiref._logspace import NEG_INF
from multiref.decoding.bench import Bench
from multiref.decoding.draws import TOO_LARGE, PromptDraws
from multiref.decoding.request import CHUNK, TRIAL, Request
from multiref.decoding.rewarding import Rewarding
from multiref.errors import ArgumentError, EmptyPoolError
from multiref.models.descent import Descent, descend
from multiref.models.encoding import Ids, encode_many
from multiref.models.particles import Filed, Twist, walk
from multiref.models.sampling import as_rollouts
from multiref.models.spec import TOKENISATION
from multiref.weighting.particles import thin

MOST_PROPOSALS = 1e5  # a draw: beyond it rejection is refused
SEGMENT = 8  # tokens between two scores of the text so far, where vocabularies differ
FAR = 50.0  # nats below the best at most, in a guess: what forbids a text so far may allow the whole
APART = 104_729  # thinning has a seed of its own


def walked(bench: Bench, prompt: Any, context: Ids, seed: int) -> PromptDraws:
    """smc, and importance with every end counted: particles, thinned without bias to as many completions as particles."""
    request = bench.request
    filed = _walk(bench, prompt, context, bench.generator(seed))
    mass = filed.log_mass.clone()  # [S, I, n]
    if request.require_end:
        mass[-1] = NEG_INF
    stages, islands, n = mass.shape
    alone = request.method == "importance"  # each particle is an island of its own, and keeps one completion

    def grouped(values: Tensor) -> Tensor:
        """[S, I, n] → a row for each independent estimate."""
        return values.permute(1, 2, 0).reshape(-1, stages) if alone else values.transpose(0, 1).reshape(islands, -1)

    twist = grouped(filed.log_twist)
    kept = thin(grouped(mass) + twist, 1 if alone else n, torch.Generator().manual_seed(seed + APART)) - twist
    places = (kept > NEG_INF).nonzero()
    if alone:
        entries = [(int(s), int(row)) for row, s in places]
    else:
        entries = [(int(cell) // n, int(island) * n + int(cell) % n) for island, cell in places]
    paths = filed.paths(entries)
    ids, ended, roots = [ids for ids, _, _ in paths], [ended for _, ended, _ in paths], [root for _, _, root in paths]
    log_w = kept[places[:, 0], places[:, 1]] - math.log(1 if alone else n)  # an island's sum is its estimate
    spelled = torch.ones(len(ids), dtype=torch.bool)
    if bench.foreign and ids:  # until here the mass is that of the proposer's own ids
        logps, spelled = _as_text(bench, prompt, context, ids, ended)
        log_w = torch.where(spelled, log_w + request.regularizer.pool(logps) - logps[bench.proposer], NEG_INF)
    found = _finish(bench, prompt, context, ids, ended, log_w, places[:, 0], groups=len(kept), roots=roots)
    return replace(found, not_canonical=1 - float(spelled.double().mean()))


def _walk(bench: Bench, prompt: Any, context: Ids, generator: torch.Generator) -> Filed:
    """Particles of the pool; of the proposer alone where the others have other vocabularies and score its text at the end of
    every segment."""
    request = bench.request
    filed = walk(
        bench.models,
        context,
        torch.ones(1).double() if bench.foreign else bench.weights,
        ends=bench.ends,
        generation=request.generation,
        particles=(request.islands, request.n),
        generator=generator,
        flat=0.5 if request.proposal == "flat" else 0.0,
        resampling="adaptive" if request.method == "smc" else "never",
        twist=_twist(bench, prompt, context),
    )
    bench.tokens += filed.forwarded
    return filed


def _twist(bench: Bench, prompt: Any, context: Ids) -> Twist | None:
    r"""log ψ of texts so far: twist/β of the caller's, plus log P_0/π_proposer across vocabularies."""
    request = bench.request
    if request.twist is None and not bench.foreign:
        return None
    ask = Rewarding(request.twist, None, "twist")

    def guess(rows: Sequence[Ids]) -> Tensor | None:
        """None where the others are not asked: within a segment."""
        if bench.foreign and len(rows[0]) % SEGMENT:
            return None
        found = ask(prompt, bench.texts(context, rows, prompt)) / request.beta
        if bool((found == NEG_INF).any()):
            raise ArgumentError("twist: found −∞; a guess must leave every text some mass. Leave vetoes to the reward.")
        if bench.foreign:
            logps, _ = _as_text(bench, prompt, context, rows, [False] * len(rows))
            ratio = request.regularizer.pool(logps) - logps[bench.proposer]
            found = found + ratio.clamp_min(max(float(ratio.max()), -1e6) - FAR)
        return found

    return guess


def _as_text(bench: Bench, prompt: Any, context: Ids, ids: Sequence[Ids], ended: Sequence[bool]) -> tuple[Tensor, Tensor]:
    """[K, N] log π_k of what the proposer's ids say, [N] whether they are the canonical spelling. Each is scored once."""
    once = list(dict.fromkeys(zip(ids, ended)))
    rows, ends = [row for row, _ in once], tuple(end for _, end in once)
    (rollout,) = as_rollouts(bench.tokenizer, [prompt], [context], [(row, ()) for row in rows], bench.ends)
    logps = bench.scorer.completions([replace(rollout, ended=ends)])
    spelled = _canonical(bench, prompt, rollout.completions, rows, ends)
    place = {each: i for i, each in enumerate(once)}
    back = [place[each] for each in zip(ids, ended)]
    return logps[:, back], spelled[back]


def weighed(bench: Bench, prompt: Any, context: Ids, seed: int) -> PromptDraws:
    """importance with ends drawn, and the per-token pool: independent completions, each weighed once."""
    request = bench.request
    drawn = _descend(bench, context, request.rows, bench.generator(seed))
    logps, spelled = drawn.logps, torch.ones(len(drawn.ids), dtype=torch.bool)
    if bench.foreign:
        logps, spelled = _as_text(bench, prompt, context, drawn.ids, drawn.ended)
    log_w = torch.where(drawn.log_proposal > NEG_INF, 0.0, NEG_INF)  # nothing goes on where references exclude each other
    if request.method != "token":
        log_w = torch.where(spelled & (log_w == 0), request.regularizer.pool(logps) - drawn.log_proposal, NEG_INF)
    if request.require_end:
        log_w = torch.where(torch.tensor(drawn.ended), log_w, NEG_INF)
    every = torch.arange(len(drawn.ids))
    found = _finish(bench, prompt, context, drawn.ids, drawn.ended, log_w, every, groups=len(every), roots=every.tolist())
    return replace(found, not_canonical=1 - float(spelled.double().mean()))


def rejected(bench: Bench, prompt: Any, context: Ids, seed: int) -> PromptDraws:
    r"""Exact draws: a proposal stays with probability P_0/q · e^{(r − r_max)/β}, at most 1 for the pool and the mixture.

    The acceptance is Z e^{−r_max/β} for both; it is predicted by a few particles first.
    """
    request, count = bench.request, bench.request.rows
    most = 0.0 if request.reward is None else float(request.reward_max or 0.0)
    ids, ended, rewards, proposed = _accept(bench, prompt, context, seed, _acceptance(bench, prompt, context, seed, most), most)
    accepted = len(ids) / proposed  # the last chunk may bring more than were asked for: they are left out
    return PromptDraws(
        prompt,
        tuple(bench.texts(context, ids[:count], prompt)),
        tuple(ids[:count]),
        tuple(ended[:count]),
        torch.full((count,), math.log(accepted / count) + most / request.beta, dtype=torch.float64),
        torch.tensor(rewards[:count], dtype=torch.float64),
        math.log(accepted) + most / request.beta,
        math.sqrt((1 - accepted) / (accepted * proposed)),
        1 / count,
        count,
    )


def _acceptance(bench: Bench, prompt: Any, context: Ids, seed: int, most: float) -> float:
    """Z e^{−r_max/β} by a trial of particles. ArgumentError where so many proposals are too many, or over the budget."""
    request = bench.request
    trial = replace(bench, request=replace(request, method="importance", proposal="flat", n=TRIAL, islands=1), tokens=0)
    log_z = walked(trial, prompt, context, seed).log_partition
    bench.tokens += trial.tokens
    predicted = math.exp(min(log_z - most / request.beta, 0.0))
    if predicted < 1 / MOST_PROPOSALS:
        raise ArgumentError(
            f"method: rejection accepts about {predicted:.2g} of its proposals here (Z e^(−r_max/β)); at most "
            f"{MOST_PROPOSALS:,.0f} a draw are tried. Use method='smc'."
        )
    rows, spent = math.ceil(request.rows / predicted), bench.rewarding.calls
    request.check_budget(bench.models, [context], rows, tokens=bench.tokens, rewards=spent)
    return predicted


def _accept(
    bench: Bench, prompt: Any, context: Ids, seed: int, predicted: float, most: float
) -> tuple[list[Ids], list[bool], list[float], int]:
    """Chunks of proposals until as many stay as are asked for: ids, ends and rewards of those, and how many were proposed."""
    request, generator = bench.request, bench.generator(seed)
    ids: list[Ids] = []
    ended: list[bool] = []
    rewards: list[float] = []
    proposed = 0
    while len(ids) < request.rows:
        rows = min(CHUNK, max(64, int(1.2 * (request.rows - len(ids)) / predicted)))
        room = torch.rand(rows, generator=generator, dtype=torch.float64, device=generator.device).log().cpu()
        drawn = _descend(bench, context, rows, generator, room if request.proposal == "pool" else None)
        log_w = request.regularizer.pool(drawn.logps) - drawn.log_proposal
        stays = [i for i in (room < log_w).nonzero()[:, 0].tolist() if drawn.ended[i] or not request.require_end]
        earned = bench.rewarding(prompt, bench.texts(context, [drawn.ids[i] for i in stays], prompt))
        for i, value in zip(stays, earned.tolist()):
            if room[i] < log_w[i] + (value - most) / request.beta:
                ids.append(drawn.ids[i])
                ended.append(drawn.ended[i])
                rewards.append(value)
        proposed += rows
        if len(ids) < request.rows:
            request.check_spent({"tokens": bench.tokens, "rewards": bench.rewarding.calls}, f"rejection has {len(ids)} draws")
        if proposed > 10 * MOST_PROPOSALS * request.rows:
            raise ArgumentError(f"method: rejection found {len(ids)} draws in {proposed:,} proposals. Use method='smc'.")
    return ids, ended, rewards, proposed


def _descend(bench: Bench, context: Ids, rows: int, generator: torch.Generator, patience: Tensor | None = None) -> Descent:
    request = bench.request
    drawn = descend(
        bench.models,
        context,
        bench.component,
        ends=bench.ends,
        generation=request.generation,
        rows=rows,
        generator=generator,
        pooled=request.proposal in ("pool", "sampled_ends"),
        order=request.regularizer.order,
        weighed=None if bench.foreign else bench.weights > 0,
        patience=patience,
    )
    bench.tokens += drawn.forwarded
    if drawn.uncovered:
        raise ArgumentError(
            f"proposal: {request.proposal!r} gives no mass to tokens to which the target gives some; its weights cannot find "
            "them. Use proposal='mixture', or a reference that covers the others."
        )
    return drawn


def _canonical(bench: Bench, prompt: Any, completions: Sequence[Any], ids: Sequence[Ids], ended: Sequence[bool]) -> Tensor:
    """[N]: whether each draw's ids are what its text encodes to. A text counts once, not once for every spelling."""
    spelled = torch.zeros(len(ids), dtype=torch.bool)
    for end in (True, False):
        places = [i for i, closed in enumerate(ended) if closed == end]
        if places:
            texts = [(prompt, tuple(completions[i] for i in places))]
            (encoded,) = encode_many(bench.tokenizer, texts, replace(TOKENISATION, end=end))
            for i, found in zip(places, encoded.completions):
                spelled[i] = found == ids[i]
    return spelled


def _finish(
    bench: Bench,
    prompt: Any,
    context: Ids,
    ids: Sequence[Ids],
    ended: Sequence[bool],
    log_w: Tensor,
    group: Tensor,
    *,
    groups: int,
    roots: Sequence[int],
) -> PromptDraws:
    """Rewards, the tilt, and what the groups (independent ones, numbered by `group`) say of the sum."""
    request = bench.request
    texts = bench.texts(context, ids, prompt)
    rewards = torch.full((len(ids),), NEG_INF, dtype=torch.float64)
    asked = (log_w > NEG_INF).nonzero()[:, 0]
    rewards[asked] = bench.rewarding(prompt, [texts[i] for i in asked.tolist()])
    tilted = log_w + torch.where(log_w > NEG_INF, rewards / request.beta, 0.0)
    if bool((far := rewards.isfinite() & (rewards / request.beta).isinf()).any()):
        raise ArgumentError(
            f"beta: a reward of {float(rewards[far][0]):.3g} over β = {request.beta:.3g} is no finite number. "
            "Expected finite weights e^{r/β}: give smaller rewards, or a larger β."
        )
    if not bool((tilted > NEG_INF).any()):
        why = "the reward is −∞ for all of them" if len(asked) else "some reference forbids every one, or none ended in time"
        why += ", or none is what its text encodes to" if bench.foreign else ""
        raise EmptyPoolError(f"No completion of {str(prompt)[:60]!r} that was drawn has mass: {why}.")
    rooted_family = request.regularizer.alpha != 1 and request.method != "token"
    log_w = _solved(request, log_w, rewards) if rooted_family else tilted
    top = float(log_w.max())
    sums = torch.zeros(groups, dtype=torch.float64).index_add_(0, group, (log_w - top).exp())
    mean = float(sums.mean())
    share = float((log_w - log_w.logsumexp(0)).exp().max())
    known = request.regularizer.alpha == 1 and request.method != "token"
    error = float(sums.std()) / mean / math.sqrt(groups) if groups > 1 and share <= TOO_LARGE and known else math.nan
    rooted = {root for root, w in zip(roots, log_w.tolist()) if w > NEG_INF}
    return PromptDraws(
        prompt,
        tuple(texts),
        tuple(ids),
        tuple(ended),
        log_w - math.log(groups),
        torch.where(torch.isnan(rewards), 0.0, rewards),
        top + math.log(mean) if known else math.nan,
        error,
        share,
        len(rooted),
        log_islands=sums.log() + top if known else torch.empty(0),
    )


def _solved(request: Request, log_w: Tensor, rewards: Tensor) -> Tensor:
    r"""α ≠ 1: the optimum's log-weights over the draws, each standing for the mass P(y)/(N q(y)), by the exact solver."""
    log_mass = log_w - math.log(len(log_w))
    if float(log_mass.max()) > 0:
        raise ArgumentError(
            f"proposal: one of {len(log_w)} draws from {request.proposal!r} stands for more mass than one; use "
            "proposal='mixture', or more draws."
        )
    alone = request.regularizer.with_weights((1.0,))
    return exact.solve(rewards, log_mass[None], alone, beta=request.beta).log_policy + math.log(len(log_w))
