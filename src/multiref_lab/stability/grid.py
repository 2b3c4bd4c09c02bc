"""What is varied: one thing at a time around a base, in three worlds. A cell that two axes share is measured once."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from multiref.errors import ArgumentError
from multiref_lab.experiment import Experiment
from multiref_lab.stability.linear_cell import measure_linear
from multiref_lab.stability.measures import Measured
from multiref_lab.stability.sample import Given, LinearSettings
from multiref_lab.stability.transformer_cell import TransformerSettings, measure_transformer

WORLDS = ("linear", "features", "transformer")
Settings = LinearSettings | TransformerSettings


@dataclass(frozen=True)
class Cell:
    """One set of settings in one world."""

    world: str
    settings: Settings

    @property
    def name(self) -> str:
        """What differs from cell to cell."""
        wanted = ("samples", "dimension", "width", "noise", "curved")
        values = dataclasses.asdict(self.settings)
        return "-".join([self.world, *(f"{key}{values[key]:g}" for key in wanted if key in values)])


@dataclass(frozen=True)
class Measuring:
    """Cell → {method/K: {measure: one number a seed}}. given: what the world `features` stands on; source:
    where it comes from, in words."""

    given: Given | None = None
    source: str = ""

    def __call__(self, cell: Cell) -> Measured:
        if isinstance(cell.settings, TransformerSettings):
            return measure_transformer(cell.settings)
        return measure_linear(cell.settings, self.given if cell.world == "features" else None)

    def depends(self, cell: Cell) -> dict[str, str]:
        """What a cell's numbers depend on beside it."""
        return {"source": self.source} if cell.world == "features" else {}


@dataclass(frozen=True)
class Axis:
    """Cells in which one thing grows: the settings' `field`, called `label` on a figure."""

    world: str
    name: str
    label: str
    field: str
    cells: tuple[Cell, ...]

    @property
    def title(self) -> str:
        return f"{self.world}-{self.name}"

    @property
    def x(self) -> list[float]:
        """What grows, cell by cell."""
        return [float(getattr(cell.settings, self.field)) for cell in self.cells]

    @property
    def logarithmic(self) -> bool:
        """Sizes are; shares, which begin at zero, aren't."""
        return self.field not in ("noise", "curved")


def experiment(folder: str | Path, chosen: Sequence[Axis], measuring: Measuring) -> Experiment[Cell, Measured]:
    """Every cell of these axes, kept in the folder."""
    cells = [cell for axis in chosen for cell in axis.cells]
    return Experiment(Path(folder) / "records", cells, measuring, given=measuring.depends)


def axes(worlds: Sequence[str], *, quick: bool = False, seeds: int | None = None, seed: int = 0) -> list[Axis]:
    """The axes of these worlds. quick: two points an axis, few seeds: seconds, for a look and for tests.

    Raises:
        ArgumentError: a world that is none.
    """
    for world in worlds:
        if world not in WORLDS:
            raise ArgumentError(f"world: found {world!r}, expected one of {', '.join(WORLDS)}")
    base = LinearSettings(seed=seed, seeds=(4 if quick else 20) if seeds is None else seeds, ascent_steps=20 if quick else 160)
    made: list[Axis] = []
    if "linear" in worlds:
        made += _linear("linear", base, (64, 128, 256, 512, 1024, 2048, 4096), (2, 4, 8, 16, 32, 64, 128))
        made += _more_linear(base)
    if "features" in worlds:
        made += _linear("features", replace(base, samples=256), (32, 64, 128, 256, 512), (2, 4, 8, 16, 32))
    if "transformer" in worlds:
        made += _transformer(TransformerSettings(seed=seed, seeds=(2 if quick else 8) if seeds is None else seeds), quick)
    return [replace(axis, cells=(axis.cells[0], axis.cells[len(axis.cells) // 2])) for axis in made] if quick else made


def _axis(world: str, base: Settings, name: str, label: str, changes: Sequence[dict[str, Any]]) -> Axis:
    """Cells that differ from the base by these; the first key is what grows."""
    return Axis(world, name, label, next(iter(changes[0])), tuple(Cell(world, replace(base, **change)) for change in changes))


def _each(field: str, values: Sequence[float], **fixed: float) -> list[dict[str, float]]:
    return [{field: value, **fixed} for value in values]


def _linear(world: str, base: LinearSettings, samples: Sequence[int], dimensions: Sequence[int]) -> list[Axis]:
    unseen = "share of the reward's variance that no linear function of the features sees"
    return [
        _axis(world, base, "samples", "preference pairs n", _each("samples", samples)),
        _axis(world, base, "dimension", f"features d, at n = {base.samples}", _each("dimension", dimensions)),
        _axis(world, base, "noise", "share of flipped labels", _each("noise", (0.0, 0.05, 0.1, 0.2, 0.3))),
        _axis(world, base, "curved", unseen, _each("curved", (0.0, 0.25, 0.5, 0.75, 1.0))),
    ]


def _more_linear(base: LinearSettings) -> list[Axis]:
    sizes, ratio = (256, 512, 1024, 2048, 4096), [{"samples": n, "dimension": n // 16} for n in (64, 128, 256, 512, 1024)]
    noisy, curved = (
        "preference pairs n, 20 % of the labels flipped",
        "preference pairs n, half of the reward's variance not linear",
    )
    return [
        _axis("linear", base, "samples-noisy", noisy, _each("samples", sizes, noise=0.2)),
        _axis("linear", base, "samples-curved", curved, _each("samples", sizes, curved=0.5)),
        _axis("linear", base, "proportional", "preference pairs n, d = n/16", ratio),
    ]


def _transformer(base: TransformerSettings, quick: bool) -> list[Axis]:
    if quick:
        base = replace(base, samples=64, fit_steps=20, ascent_steps=16, fresh=8)
    width = f"width of policy and reward model, at n = {base.samples}"
    sizes = (64, 128) if quick else (128, 256, 512, 1024, 2048)
    return [
        _axis("transformer", base, "samples", "preference pairs n", _each("samples", sizes)),
        _axis("transformer", base, "width", width, _each("width", (8, 16, 32))),
        _axis("transformer", base, "noise", "share of flipped labels", _each("noise", (0.0, 0.1, 0.2, 0.3))),
    ]
