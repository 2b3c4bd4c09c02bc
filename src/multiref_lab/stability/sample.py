"""Preference data whose examples can be exchanged: n labelled pairs, each with a prompt of its own, spare ones,
and fresh prompts to judge on."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from multiref import exact, pools
from multiref.errors import ArgumentError
from multiref.regularizers import ReverseKL
from multiref_lab.stability.runs import Runs


@dataclass(frozen=True)
class Prompts:
    """F prompts a seed with Y completions: features [S, F, Y, d] that the class sees, true reward [S, F, Y], ref_logps [2, S,
    F, Y]."""

    features: Tensor
    reward: Tensor
    ref_logps: Tensor

    def pool(self, count: int) -> Tensor:
        """[S, F, Y]: normalised escort of the first `count` references, weighted alike."""
        return pools.power_pool(self.ref_logps[:count], None, order=0.0).log_softmax(-1)

    def optimum(self, count: int, beta: float) -> Tensor:
        """[S, F, Y]: log π* for the true reward."""
        return exact.solve(self.reward, self.ref_logps[:count], ReverseKL(), beta=beta).log_policy

    def take(self, rows: slice) -> "Prompts":
        """Some of the prompts."""
        return Prompts(self.features[:, rows], self.reward[:, rows], self.ref_logps[:, :, rows])


@dataclass(frozen=True)
class Sample:
    """S data sets. `prompts` holds N = n + spares prompts, one pair each; `runs` says which of them each run trains on.

    Attributes:
        preferred, other: [S, N] completions of each pair, preferred first.
        fresh: prompts that no run trains on.
        flip: the chance that a label is turned.
    """

    prompts: Prompts
    preferred: Tensor
    other: Tensor
    fresh: Prompts
    runs: Runs
    flip: float

    def seen(self, most: int) -> Prompts:
        """The first training prompts, `most` of them at most."""
        return self.prompts.take(slice(0, min(self.runs.samples, most)))

    def delta(self) -> Tensor:
        """[S, N, d]: φ(preferred) − φ(other)."""
        return self.difference(self.prompts.features)

    def difference(self, values: Tensor) -> Tensor:
        """[S, N, Y, …] → [S, N, …]: the value at the preferred completion less that at the other."""
        seeds, pairs = torch.arange(values.shape[0])[:, None], torch.arange(values.shape[1])
        return values[seeds, pairs, self.preferred] - values[seeds, pairs, self.other]


def draw_pairs(prompts: Prompts, flip: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """[S, N], [S, N]: preferred and other of two different completions from the references' even mixture,
    labelled by Bradley–Terry, then flipped."""
    if not 0 <= flip < 0.5:
        raise ArgumentError(
            f"noise: found {flip}, expected a share of flipped labels of at least 0 and below 0.5; at 0.5 a label says nothing"
        )
    law = pools.power_pool(prompts.ref_logps, None, order=1.0).exp()
    flat = law.flatten(0, 1)
    two = torch.multinomial(flat, 2, replacement=False, generator=generator).reshape(*law.shape[:2], 2)
    first, second = two.unbind(-1)
    margin = (prompts.reward.gather(-1, two) * torch.tensor([1.0, -1.0], dtype=torch.float64)).sum(-1)
    wins = torch.rand(margin.shape, generator=generator, dtype=torch.float64) < torch.sigmoid(margin)
    wins ^= torch.rand(margin.shape, generator=generator, dtype=torch.float64) < flip
    return torch.where(wins, first, second), torch.where(wins, second, first)


@dataclass(frozen=True)
class Settings:
    """samples n; noise: share of flipped labels; seeds: data sets; replaced, left_out: one a run; fresh: prompts."""

    samples: int = 512
    noise: float = 0.0
    seeds: int = 20
    replaced: int = 6
    left_out: int = 8
    fresh: int = 64
    beta: float = 0.5
    ascent_steps: int = 160
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name not in ("noise", "left_out", "seed", "curved") and not value > 0:
                raise ArgumentError(f"{name}: found {value}, expected a number above zero")

    @property
    def runs(self) -> Runs:
        """Which runs there are, and how they share their data."""
        return Runs(self.samples, self.replaced, self.left_out)


@dataclass(frozen=True)
class LinearSettings(Settings):
    """dimension d of the class, curved: share of the reward's variance outside it."""

    dimension: int = 8
    curved: float = 0.0
    completions: int = 8
    ridge: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.curved <= 1:
            raise ArgumentError(
                f"curved: found {self.curved}, expected the share of the reward's variance outside the class, between 0 and 1"
            )


@dataclass(frozen=True)
class Given:
    """Prompts of a real model: states [P, Y, D] (frozen hidden states, principal directions first) and ref_logps [2, P, Y]."""

    states: Tensor
    ref_logps: Tensor


World = Callable[[slice], Prompts]  # some rows of all the prompts that there are


def deal(settings: Settings, world: World, generator: torch.Generator) -> Sample:
    """Prompts of the runs with their labelled pairs, and fresh ones after them."""
    runs = settings.runs
    prompts = world(slice(0, runs.rows))
    pairs = draw_pairs(prompts, settings.noise, generator)
    return Sample(prompts, *pairs, world(slice(runs.rows, runs.rows + settings.fresh)), runs, settings.noise)


def draw(settings: LinearSettings, given: Given | None = None) -> Sample:
    """The data of a cell. Seeds, not cells, are independent: a cell's data come from its own settings' seed."""
    generator = torch.Generator().manual_seed(7919 * settings.seed + 17)
    world = _gaussian(settings, generator) if given is None else _given(settings, given, generator)
    return deal(settings, world, generator)


def _gaussian(settings: LinearSettings, generator: torch.Generator) -> World:
    r"""Gaussian features N(0, 1/d); the reward has variance one, of which the share `curved` no linear function can see.

        r* = √(1 − c) √d ⟨θ, φ⟩/‖θ‖ + √c Σ_{k≤3} (z_k² − 1)/√6,     z_k = √d ⟨a_k, φ⟩, a_k orthonormal

    The second part is a Hermite polynomial of degree two: uncorrelated with everything linear.
    References: half of their logits' variance is linear in the same features, half is not; standard deviation one.
    """
    seeds, dimension, curved = settings.seeds, settings.dimension, settings.curved
    theta, curves, tilt = (
        torch.randn(seeds, count, dimension, generator=generator, dtype=torch.float64) for count in (1, min(3, dimension), 2)
    )
    curves = torch.linalg.qr(curves.mT)[0].mT

    def world(rows: slice) -> Prompts:
        shape = (seeds, rows.stop - rows.start, settings.completions, dimension)
        features = torch.randn(*shape, generator=generator, dtype=torch.float64)

        def along(directions: Tensor) -> Tensor:  # [S, k, d] → [S, F, Y, k], standard normal
            return torch.einsum("sfyd,skd->sfyk", features, directions / directions.norm(dim=-1, keepdim=True))

        bent = (along(curves).square() - 1).sum(-1) / (2 * curves.shape[1]) ** 0.5
        reward = (1 - curved) ** 0.5 * along(theta)[..., 0] + curved**0.5 * bent
        noise = torch.randn(2, *reward.shape, generator=generator, dtype=torch.float64)
        logits = (along(tilt).movedim(-1, 0) + noise) / 2**0.5
        return Prompts(features / dimension**0.5, reward, logits.log_softmax(-1))

    return world


def _given(settings: LinearSettings, given: Given, generator: torch.Generator) -> World:
    r"""The same from P prompts with given features [P, Y, D] and references [2, P, Y]:
    each seed deals the prompts anew into training, spare and fresh ones.

    The class sees the first d of D directions. r* = √(1 − c) (linear in those) + √c (linear in the other D − d),
    each of variance one.

    Raises:
        ArgumentError: fewer prompts than n + spares + fresh, or c > 0 with no direction left.
    """
    dimension, curved, seeds = settings.dimension, settings.curved, settings.seeds
    total, (count, _, width) = settings.runs.rows + settings.fresh, given.states.shape
    if total > count:
        raise ArgumentError(
            f"samples: {total} different prompts are needed, found {count}; use fewer samples or give more prompts"
        )
    if curved > 0 and width <= dimension:
        raise ArgumentError(
            f"curved: the class sees all {width} directions, so nothing is left for it to miss; "
            f"expected a dimension below {width}"
        )
    order = torch.stack([torch.randperm(count, generator=generator)[:total] for _ in range(seeds)])
    theta = torch.randn(seeds, width, generator=generator, dtype=torch.float64)
    states = given.states / given.states.flatten(0, 1).std(0)
    parts = []
    for part, share in ((slice(0, dimension), 1 - curved), (slice(dimension, width), curved)):
        values = torch.einsum("pyd,sd->spy", states[..., part], theta[:, part])
        scale = values.flatten(1).std(-1)[:, None, None]
        parts.append(share**0.5 * values / scale if share > 0 else torch.zeros_like(values))
    reward = (parts[0] + parts[1]).gather(1, order.unsqueeze(-1).expand(-1, -1, states.shape[1]))
    return Prompts(states[order][..., :dimension] / dimension**0.5, reward, given.ref_logps[:, order]).take
