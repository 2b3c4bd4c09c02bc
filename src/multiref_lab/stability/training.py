"""Training small transformers, all runs at once: pairs for a reward model or DPO, sampled completions for policy gradients.
Adam, common random numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.nn.functional import softplus

from multiref_lab.stability.gradient import Ascent, adam, draws
from multiref_lab.stability.sample import Sample
from multiref_lab.stability.transformer import Shape

Learned = Callable[[Tensor, Tensor], Tensor]
Margins = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Fit:
    """How pairs are fitted: `steps` of Adam on `batch` pairs, step `rate` falling to zero, (ridge/2)‖w − w_0‖² added to the sum
    of all n losses."""

    steps: int = 200
    batch: int = 32
    rate: float = 0.003
    ridge: float = 10.0


def pair_margins(shape: Shape, *, beta: float | None) -> Margins:
    """(parameters [R, P], content [R, B, c], preferred [R, B, L], other, tilt [R, B]) → margins [R, B].

    Of rewards where beta is None, else of β log(π/P): β Δ log π + tilt, the tilt being −β Δ log P.
    """
    values = shape.rewards if beta is None else shape.logps

    def margins(parameters: Tensor, content: Tensor, preferred: Tensor, other: Tensor, tilt: Tensor) -> Tensor:
        both = values(parameters, content.repeat(1, 2, 1), torch.cat((preferred, other), 1))
        first, second = both.chunk(2, 1)
        return (1.0 if beta is None else beta) * (first - second) + tilt

    return margins


def fit_pairs(
    sample: Sample, shape: Shape, start: Tensor, settings: Fit, *, beta: float | None, tilt: Tensor, seed: int
) -> Tensor:
    """[S, M, P] from start [S, P]: Σ log(1 + e^{−m}) over pairs, by Adam on the batches that all runs of a seed share.

    Args:
        beta: None for a reward model, the strength for DPO. tilt: [S, N], the constant part of the margins.
    """
    completions, margins = shape.completions(), pair_margins(shape, beta=beta)
    runs = sample.runs
    origin = start.repeat_interleave(runs.count, 0)
    parameters = origin.clone().requires_grad_()
    descend = adam(parameters, settings.rate, settings.steps)
    batches = draws(runs, len(start), settings.batch, 0, seed=seed)
    content = sample.prompts.features[:, :, 0]
    at = torch.arange(len(start))[:, None, None]
    for rows, _ in islice(batches, settings.steps):
        batch = [x[at, rows].flatten(0, 1) for x in (content, completions[sample.preferred], completions[sample.other], tilt)]
        loss = softplus(-margins(parameters, *batch)).mean(-1)
        loss = loss + 0.5 * settings.ridge / runs.samples * (parameters - origin).square().sum(-1)
        descend(*torch.autograd.grad(loss.sum(), parameters))
    return _by_seed(parameters, start)


def climb(
    sample: Sample, shape: Shape, start: Tensor, reward: Learned, log_pool: Tensor, ascent: Ascent, *, beta: float, seed: int
) -> Tensor:
    """[S, M, P] from start [S, P]: policy gradient on E_π[r̂ − β log(π/P)] over the training prompts.

    Args:
        reward: (content [R, B, c], completions [R, B, L]) → [R, B], each run's learned reward. log_pool: [S, N, Y].
    """
    runs, seeds = sample.runs, len(start)
    parameters = start.repeat_interleave(runs.count, 0).requires_grad_()
    descend = adam(parameters, ascent.rate, ascent.steps)
    batches = draws(runs, seeds, ascent.batch, ascent.batch * ascent.group, shape.length, seed=seed)
    content = sample.prompts.features[:, :, 0]
    at = torch.arange(seeds)[:, None, None]
    for step in range(ascent.steps):
        if step % ascent.updates == 0:
            rows, uniforms = next(batches)
            rows = rows.repeat_interleave(ascent.group, -1)
            prompts = content[at, rows].flatten(0, 1)
            with torch.no_grad():
                chosen = shape.sample(parameters, prompts, uniforms.flatten(0, 1))
                old = shape.logps(parameters, prompts, chosen)
                place = shape.index(chosen).unflatten(0, (seeds, -1))
                net = reward(prompts, chosen) - beta * (old - log_pool[at, rows, place].flatten(0, 1))
            advantages = ascent.advantages(net.unflatten(-1, (ascent.batch, ascent.group))).flatten(1)
        logps = shape.logps(parameters, prompts, chosen)
        ratio = ascent.kept((logps.detach() - old).exp(), advantages)
        descend(*torch.autograd.grad(-(advantages * ratio * logps).mean(-1).sum(), parameters))
    return _by_seed(parameters, start)


def _by_seed(parameters: Tensor, start: Tensor) -> Tensor:
    """[S·M, P] → [S, M, P]."""
    return torch.unflatten(parameters.detach(), 0, (len(start), -1))
