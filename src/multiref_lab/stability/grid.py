"""What is varied: one thing at a time around a base, in three worlds. A cell that two axes share is measured once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from multiref.errors import ArgumentError
from multiref_lab.stability.linear_cell import Given, LinearSettings, measure_linear
from multiref_lab.stability.transformer_cell import TransformerSettings, measure_transformer

__all__ = ["WORLDS", "Axis", "Cell", "axes", "unique"]

WORLDS = ("linear", "features", "transformer")
Settings = LinearSettings | TransformerSettings


@dataclass(frozen=True)
class Cell:
    """One set of settings in one world: what a record on disk stands for."""

    world: str
    settings: Settings

    @property
    def name(self) -> str:
        """The file's name: what differs from cell to cell."""
        wanted = ("samples", "dimension", "width", "noise", "curved")
        values = dataclasses.asdict(self.settings)
        return "-".join([self.world, *(f"{key}{values[key]:g}" for key in wanted if key in values)])

    def measure(self, given: Given | None = None) -> dict[str, Any]:
        """{method/K: {measure: one number a seed}}."""
        if isinstance(self.settings, TransformerSettings):
            return measure_transformer(self.settings)
        return measure_linear(self.settings, given if self.world == "features" else None)


@dataclass(frozen=True)
class Axis:
    """Cells in which one thing grows. x: its value in a cell; label: what it is called on a figure."""

    world: str
    name: str
    label: str
    x: Callable[[Any], float]
    cells: tuple[Cell, ...]
    logarithmic: bool = True

    @property
    def title(self) -> str:
        return f"{self.world}-{self.name}"


def axes(worlds: Sequence[str], *, quick: bool = False, seeds: int | None = None, seed: int = 0) -> list[Axis]:
    """The axes of these worlds. quick: two points an axis, few seeds: seconds, for a look and for tests.

    Raises:
        ArgumentError: a world that is none.
    """
    for world in worlds:
        if world not in WORLDS:
            raise ArgumentError(f"world: found {world!r}, expected one of {', '.join(WORLDS)}")
    made: list[Axis] = []
    if "linear" in worlds:
        base = LinearSettings(seed=seed, seeds=_seeds(seeds, 4 if quick else 20), ascent_steps=20 if quick else 160)
        made += _linear("linear", base, (64, 128, 256, 512, 1024, 2048, 4096), (2, 4, 8, 16, 32, 64, 128))
        made += _more_linear(base)
    if "features" in worlds:
        base = LinearSettings(
            seed=seed, samples=256, seeds=_seeds(seeds, 4 if quick else 20), ascent_steps=20 if quick else 160
        )
        made += _linear("features", base, (32, 64, 128, 256, 512), (2, 4, 8, 16, 32))
    if "transformer" in worlds:
        made += _transformer(TransformerSettings(seed=seed, seeds=_seeds(seeds, 2 if quick else 8)), quick)
    return [replace(axis, cells=(axis.cells[0], axis.cells[len(axis.cells) // 2])) for axis in made] if quick else made


def _seeds(asked: int | None, otherwise: int) -> int:
    return otherwise if asked is None else asked


def unique(of: Sequence[Axis]) -> list[Cell]:
    """Every cell once, in order."""
    return list({cell: None for axis in of for cell in axis.cells})


def _linear(world: str, base: LinearSettings, samples: Sequence[int], dimensions: Sequence[int]) -> list[Axis]:
    def axis(name: str, label: str, settings: Sequence[LinearSettings], field: str, logarithmic: bool = True) -> Axis:
        return Axis(world, name, label, lambda s: getattr(s, field), tuple(Cell(world, s) for s in settings), logarithmic)

    return [
        axis("samples", "preference pairs n", [replace(base, samples=n) for n in samples], "samples"),
        axis("dimension", f"features d, at n = {base.samples}", [replace(base, dimension=d) for d in dimensions], "dimension"),
        axis("noise", "share of flipped labels", [replace(base, noise=p) for p in (0.0, 0.05, 0.1, 0.2, 0.3)], "noise", False),
        axis(
            "curved", "share of the reward's variance that no linear function of the features sees",
            [replace(base, curved=c) for c in (0.0, 0.25, 0.5, 0.75, 1.0)], "curved", False,
        ),
    ]  # fmt: skip


def _more_linear(base: LinearSettings) -> list[Axis]:
    sizes = (256, 512, 1024, 2048, 4096)
    ratio = ((64, 4), (128, 8), (256, 16), (512, 32), (1024, 64))

    def cells(settings: Sequence[LinearSettings]) -> tuple[Cell, ...]:
        return tuple(Cell("linear", s) for s in settings)

    return [
        Axis("linear", "samples-noisy", "preference pairs n, 20 % of the labels flipped", lambda s: s.samples,
             cells([replace(base, samples=n, noise=0.2) for n in sizes])),
        Axis("linear", "samples-curved", "preference pairs n, half of the reward's variance not linear", lambda s: s.samples,
             cells([replace(base, samples=n, curved=0.5) for n in sizes])),
        Axis("linear", "proportional", "preference pairs n, d = n/16", lambda s: s.samples,
             cells([replace(base, samples=n, dimension=d) for n, d in ratio])),
    ]  # fmt: skip


def _transformer(base: TransformerSettings, quick: bool) -> list[Axis]:
    if quick:
        base = replace(base, samples=64, fit_steps=20, ascent_steps=16, fresh=8)
    sizes = (64, 128) if quick else (128, 256, 512, 1024, 2048)

    def axis(name: str, label: str, settings: Sequence[TransformerSettings], field: str, logarithmic: bool = True) -> Axis:
        return Axis(
            "transformer",
            name,
            label,
            lambda s: getattr(s, field),
            tuple(Cell("transformer", s) for s in settings),
            logarithmic,
        )

    return [
        axis("samples", "preference pairs n", [replace(base, samples=n) for n in sizes], "samples"),
        axis("width", f"width of policy and reward model, at n = {base.samples}", [replace(base, width=w) for w in (8, 16, 32)], "width"),
        axis("noise", "share of flipped labels", [replace(base, noise=p) for p in (0.0, 0.1, 0.2, 0.3)], "noise", False),
    ]  # fmt: skip
