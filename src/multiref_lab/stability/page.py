"""What an experiment shows: figures, tables, one page and its numbers.
Means over seeds with their standard errors, slopes with bootstrap intervals."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from multiref.report import Answer, Block, Picture, Prose, Section, Table
from multiref.report.figures import Curve, Plot
from multiref_lab import page
from multiref_lab.experiment import Record
from multiref_lab.stability.grid import Axis, Cell
from multiref_lab.stability.measures import Measured
from multiref_lab.stats import Estimate, Measure, fit_slope

Records = Mapping[Cell, Record[Cell, Measured]]

METHODS = {"dpo": "DPO", "gibbs": "reward model, Gibbs", "ppo": "reward model, PPO", "rloo": "reward model, RLOO"}
MEASURES = {
    "replace/parameter": "‖w − w'‖ when one pair is replaced",
    "replace/value": "|f(x) − f'(x)|, mean over fresh prompts",
    "replace/worst_value": "|f(x) − f'(x)|, largest over fresh prompts",
    "replace/tv": "total variation to the policy with one pair replaced",
    "replace/kl": "KL(π‖π') to the policy with one pair replaced",
    "leave_out/tv": "total variation to the policy with one pair left out",
    "rerun/tv": "total variation to a rerun on the same pairs",
    "regret": "β KL(π‖π*) on fresh prompts",
    "regret_gap": "β KL(π‖π*), fresh less training prompts",
    "loss_gap": "preference loss, fresh less training pairs",
}
DRAWN = ("replace/tv", "replace/value", "regret")
ALONG_DATA = ("rerun/tv", "regret_gap", "loss_gap")


@dataclass(frozen=True)
class Entry:
    """One measure of one method along an axis: values of all seeds at each point, and the slope on the top decade where it has
    one."""

    method: str
    measure: str
    values: list[list[float]]
    slope: Estimate | None

    @property
    def points(self) -> list[Measure]:
        return [Measure.of(each) for each in self.values]


def write(chosen: Sequence[Axis], records: Records, folder: Path, *, command: str = "multiref stability") -> Path:
    """report.html, results.json and figures/ in the folder; returns the page. Errors: OutputError."""
    minutes = sum(record.seconds for record in records.values()) / 60
    sections, results = [], []
    first: Answer | None = None
    for axis in chosen:
        found = list(entries(axis, records))
        pictures = list(_pictures(axis, found, folder / "figures"))
        first = first or Answer(_answer(axis, found), pictures[:1])
        blocks: list[Block] = [table(axis, found), *pictures[first.blocks == pictures[:1] :]]
        sections.append(Section(axis.title, blocks))
        results += [_plain(axis, entry) for entry in found]
    return page.write(
        folder,
        "How far each RLHF variant moves when one example changes",
        *([first] if first else []),
        *sections,
        Section("What it took", [Prose(f"{len(records)} cells, {minutes:.1f} min of processor time.")]),
        subtitle="multiref stability",
        settings={"command": command},
        results={"axes": results},
    )


def entries(axis: Axis, records: Records) -> Iterator[Entry]:
    """What every point of the axis has, method by method."""
    measured = [records[cell].found for cell in axis.cells]
    for method, first in measured[0].items():
        for name in first if all(method in one for one in measured) else ():
            values = [one[method].get(name, []) for one in measured]
            if all(values):
                yield Entry(method, name, values, _slope(axis, name, values))


def _answer(axis: Axis, found: Sequence[Entry]) -> str:
    """How far one replaced pair moves the policies at the axis's end, in one sentence: the least and the most of them."""
    moved = sorted((each for each in found if each.measure == "replace/tv"), key=lambda each: each.points[-1].mean)
    ends = [(*each.method.partition("/"), _number(each.points[-1])) for each in (*moved[:1], *moved[1:][-1:])]
    said = " and ".join(f"{METHODS.get(kind, kind)} (K = {count}), by {moves}" for kind, _, count, moves in ends)
    where = f"Where {axis.label} is {axis.x[-1]:,g}, one replaced pair moves"
    return f"{where} {said} in total variation: the least and the most of {len(moved)} methods (± one standard error)."


def _slope(axis: Axis, name: str, values: list[list[float]]) -> Estimate | None:
    """None for a measure that isn't positive by nature (gaps and correlations), or with fewer than three points in the top
    decade."""
    rate = name.endswith("error") or (name.startswith(("replace/", "leave_out/", "regret")) and "gap" not in name)
    means = torch.tensor(values, dtype=torch.float64).T
    if not (axis.logarithmic and rate and bool((means.mean(0) > 0).all()) and sum(x >= max(axis.x) / 10 for x in axis.x) >= 3):
        return None
    return fit_slope(axis.x, means)


def table(axis: Axis, found: Sequence[Entry]) -> Table:
    """Total variation, value stability and regret of every method at both ends of the axis, and slopes."""
    rows = [
        [entry.method, entry.measure, *(_number(entry.points[i]) for i in (0, -1)), _shown(entry.slope)]
        for entry in found
        if entry.measure in DRAWN
    ]
    return Table(
        ["method", "measure", "first", "last", "slope (95 %)"], rows, f"{axis.title} ({axis.x[0]:g} to {axis.x[-1]:g})"
    )


def _number(found: Measure) -> str:
    return f"{found.mean:.3g}" if found.error is None else f"{found.mean:.3g} ± {found.error:.1g}"


def _shown(slope: Estimate | None) -> str:
    return "" if slope is None else f"{slope.value:+.2f} [{slope.low:+.2f}, {slope.high:+.2f}]"


def _plain(axis: Axis, entry: Entry) -> dict[str, object]:
    slope, points = entry.slope, entry.points
    return {
        "axis": axis.title,
        "method": entry.method,
        "measure": entry.measure,
        "x": axis.x,
        "mean": [point.mean for point in points],
        "error": [point.error for point in points],
        "slope": None if slope is None else [slope.value, slope.low, slope.high],
    }


def _pictures(axis: Axis, found: Sequence[Entry], folder: Path) -> Iterator[Picture]:
    """One figure a measure: every method that has it, under one and two references; and how well influence functions
    predict."""
    by_name = {(entry.method, entry.measure): entry for entry in found}
    curve = partial(Curve.of_seeds, x=axis.x)
    for name in (*DRAWN, *(ALONG_DATA if axis.name == "samples" else ())):
        lines = [
            curve(f"{METHODS[method]}, K = {count}", values=entry.values, slope=entry.slope, place=number, dashed=count == 2)
            for number, method in enumerate(METHODS)
            for count in (1, 2)
            if (entry := by_name.get((f"{method}/{count}", name)))
            and not (name.startswith("rerun") and not any(map(any, entry.values)))  # a closed form has no random numbers
        ]
        stem = folder / f"{axis.title}-{name.replace('/', '-')}"
        yield from _picture(axis, lines, MEASURES[name], stem, signed="gap" in name)
    influence = list(dict.fromkeys(entry.method for entry in found if entry.method.startswith("influence/")))
    lines = [
        curve(f"{method.removeprefix('influence/')}, {words}", values=entry.values, place=number + 2 * k)
        for number, method in enumerate(influence)
        for k, (name, words) in enumerate((("error", "influence"), ("corrected_error", "influence / (1 − leverage)")))
        if (entry := by_name.get((method, name)))
    ]
    yield from _picture(axis, lines, "‖true − predicted‖ / ‖true‖ of left-out pairs", folder / f"{axis.title}-influence")


def _picture(axis: Axis, lines: list[Curve], ylabel: str, stem: Path, *, signed: bool = False) -> Iterator[Picture]:
    if lines:
        log = axis.logarithmic
        plot = Plot(axis.label, ylabel, lines, log_x=log, log_y=log and not signed, ticks=axis.x if log else ())
        yield page.picture(plot.figure(), stem, f"{ylabel}, by {axis.label}")
