"""Policy gradient with common random numbers: which prompts, which completions, which advantages.
What the log-linear and the small transformer share."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from multiref_lab.stability.runs import Runs


@dataclass(frozen=True)
class Ascent:
    """A way to climb E_π[r̂ − β log(π/P)] from samples: the penalty is in the reward (k1), as everywhere here.

    Attributes:
        name: how it is called.
        updates: steps on each batch of completions.
        clip: ε of the clipped ratio; None: not clipped.
        whiten: advantages are returns less the batch's mean, divided by its standard deviation (PPO without a critic);
            else leave-one-out.
        batch, group: prompts a batch and completions of each.
        steps: updates in all.
        rate: Adam's step, falling to zero by a cosine.
    """

    name: str
    updates: int
    clip: float | None
    whiten: bool
    batch: int = 32
    group: int = 4
    steps: int = 160
    rate: float = 0.1

    def advantages(self, returns: Tensor) -> Tensor:
        """[*M, B, G] → [*M, B, G]."""
        if self.whiten:
            centred = returns - returns.mean((-1, -2), keepdim=True)
            return centred / (centred.square().mean((-1, -2), keepdim=True).sqrt() + 1e-8)
        return (returns - returns.mean(-1, keepdim=True)) * (self.group / (self.group - 1))

    def kept(self, ratio: Tensor, advantages: Tensor) -> Tensor:
        """The ratios whose gradient counts: π/π_old, zero where it is beyond 1 ± clip on the advantage's side."""
        if self.clip is None:
            return ratio
        beyond = ((advantages > 0) & (ratio > 1 + self.clip)) | ((advantages < 0) & (ratio < 1 - self.clip))
        return torch.where(beyond, 0.0, ratio)


PPO = Ascent("ppo", updates=4, clip=0.2, whiten=True)
RLOO = Ascent("rloo", updates=1, clip=None, whiten=False)


def draws(runs: Runs, seeds: int, batch: int, *shape: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(rows [S, M, B], uniforms [S, M, *shape]) for ever: the random numbers of a training, the same for every run of a seed
    but the last, which has its own."""
    common, rerun = (torch.Generator().manual_seed(2 * seed + k) for k in (0, 1))

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        drawn, second = (torch.randint(runs.samples, (seeds, 1, batch), generator=generator) for _ in range(2))
        uniforms = torch.rand(seeds, 1, *shape, generator=generator, dtype=torch.float64)
        return runs.rows_of(drawn, second), uniforms

    while True:
        (rows, uniforms), (again_rows, again) = draw(common), draw(rerun)
        rows, uniforms = rows.clone(), uniforms.expand(-1, runs.count, *[-1] * len(shape)).clone()
        rows[:, -1], uniforms[:, -1] = again_rows[:, -1], again[:, 0]
        yield rows, uniforms


def adam(parameters: Tensor, rate: float, steps: int) -> Callable[[Tensor], None]:
    """A step down a gradient, in place: Adam (0.9, 0.99) on parameters that know nothing of each other, its rate falling to
    zero by a cosine over the steps."""
    optimizer = torch.optim.Adam([parameters], lr=rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))

    def step(gradient: Tensor) -> None:
        parameters.grad = gradient
        optimizer.step()
        schedule.step()

    return step
