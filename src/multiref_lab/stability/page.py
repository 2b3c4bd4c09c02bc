"""What an experiment shows: figures, one table, one JSON. Means over seeds with their standard errors, slopes with bootstrap intervals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from multiref._files import write_whole
from multiref.report.figures import save
from multiref.report.noise import Measure
from multiref_lab.claim import Estimate
from multiref_lab.stability.experiment import Experiment
from multiref_lab.stability.figures import Line, figure
from multiref_lab.stability.grid import Axis
from multiref_lab.stats import fit_slope

__all__ = ["Page", "write_page"]

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
class Page:
    """What was written: `path` the table as Markdown, `json` all numbers, `seconds` spent measuring."""

    path: Path
    json: Path
    seconds: float
    text: str

    def table(self) -> str:
        """The table as Markdown."""
        return self.text


def write_page(experiment: Experiment, folder: str | Path) -> Page:
    """stability.md, stability.json and figures/ in the folder, from the records that are there."""
    folder = Path(folder)
    for axis in experiment.axes:
        _draw(experiment, axis, folder / "figures")
    entries = [entry for axis in experiment.axes for entry in _entries(experiment, axis)]
    seconds = sum(record.seconds for cell in experiment.cells if (record := experiment.record(cell)))
    text = _markdown(entries)
    write_whole(
        folder / "stability.json",
        json.dumps({"axes": entries, "seconds": round(seconds, 1)}, indent=1, ensure_ascii=False) + "\n",
    )
    write_whole(folder / "stability.md", text + "\n")
    return Page(folder / "stability.md", folder / "stability.json", seconds, text)


def _columns(experiment: Experiment, axis: Axis) -> dict[str, dict[str, list[list[float]]]]:
    """{method/K: {measure: [points][seeds]}}, only what every point has."""
    records = [experiment.record(cell) for cell in axis.cells]
    measured = [record.measured for record in records if record is not None]
    if len(measured) < len(axis.cells):
        return {}
    keys = [key for key in measured[0] if all(key in one for one in measured)]
    return {
        key: {
            name: [one[key][name] for one in measured]
            for name in measured[0][key]
            if all(one[key].get(name) for one in measured)
        }
        for key in keys
    }


def _entries(experiment: Experiment, axis: Axis) -> Iterator[dict[str, Any]]:
    """One entry a measure and method of an axis: the points, mean and standard error at each, the slope on the top decade."""
    x = [float(axis.x(cell.settings)) for cell in axis.cells]
    for method, measures in _columns(experiment, axis).items():
        for name, values in measures.items():
            points = [Measure.of(one) for one in values]
            slope = _slope(x, values) if axis.logarithmic and _has_a_rate(name) else None
            yield {
                "axis": axis.title, "method": method, "measure": name, "x": x,
                "mean": [p.mean for p in points], "error": [p.error for p in points],
                "slope": None if slope is None else [slope.value, slope.low, slope.high],
            }  # fmt: skip


def _has_a_rate(name: str) -> bool:
    """Whether a measure is positive by nature; gaps and correlations have no slope in log."""
    return (name.startswith(("replace/", "leave_out/", "regret")) and "gap" not in name) or name.endswith("error")


def _slope(x: list[float], values: list[list[float]]) -> Estimate | None:
    """None where the means aren't positive, or fewer than three points lie in the top decade."""
    table = torch.tensor(values, dtype=torch.float64).T
    if not bool((table.mean(0) > 0).all()) or sum(v >= max(x) / 10 for v in x) < 3:
        return None
    return fit_slope(x, table)


def _draw(experiment: Experiment, axis: Axis, folder: Path) -> None:
    """One figure a measure: every method that has it, under one and two references; and how well influence functions predict."""
    columns = _columns(experiment, axis)
    if not columns:
        return
    x = [float(axis.x(cell.settings)) for cell in axis.cells]
    wanted = [*DRAWN, *(ALONG_DATA if axis.name == "samples" else ())]
    for name in wanted:
        lines = [
            Line(f"{METHODS[method]}, K = {count}", number, count == 2, values, _shown_slope(x, name, values, axis))
            for number, method in enumerate(METHODS)
            for count in (1, 2)
            if (values := columns.get(f"{method}/{count}", {}).get(name))
            and not (name.startswith("rerun") and not any(map(any, values)))  # a closed form has no random numbers
        ]
        _saved(lines, x, axis, MEASURES[name], folder / f"{axis.title}-{name.replace('/', '-')}", signed="gap" in name)
    lines = [
        Line(f"{key.removeprefix('influence/')}, {words}", number + 2 * k, False, values)
        for number, key in enumerate(key for key in columns if key.startswith("influence/"))
        for k, (name, words) in enumerate((("error", "influence"), ("corrected_error", "influence / (1 − leverage)")))
        if (values := columns[key].get(name))
    ]
    _saved(lines, x, axis, "‖true − predicted‖ / ‖true‖ of left-out pairs", folder / f"{axis.title}-influence")


def _saved(lines: list[Line], x: list[float], axis: Axis, ylabel: str, path: Path, *, signed: bool = False) -> None:
    if lines:
        log_y = axis.logarithmic and not signed
        save(figure(lines, x, xlabel=axis.label, ylabel=ylabel, log_x=axis.logarithmic, log_y=log_y), path)


def _shown_slope(x: list[float], name: str, values: list[list[float]], axis: Axis) -> float | None:
    found = _slope(x, values) if axis.logarithmic and _has_a_rate(name) else None
    return None if found is None else found.value


def _markdown(entries: list[dict[str, Any]]) -> str:
    """For each axis: the methods' total variation, value stability and regret at both ends, and slopes."""
    parts = []
    for title in dict.fromkeys(entry["axis"] for entry in entries):
        rows = ["| method | measure | first | last | slope (95 %) |", "|---|---|---|---|---|"]
        for entry in entries:
            if entry["axis"] == title and entry["measure"] in DRAWN:
                slope = "" if entry["slope"] is None else "{:+.2f} [{:+.2f}, {:+.2f}]".format(*entry["slope"])
                first, last = (_number(entry["mean"][i], entry["error"][i]) for i in (0, -1))
                rows.append(f"| {entry['method']} | {entry['measure']} | {first} | {last} | {slope} |")
        ends = next(entry["x"] for entry in entries if entry["axis"] == title)
        parts.append(f"## {title} ({ends[0]:g} to {ends[-1]:g})\n\n" + "\n".join(rows))
    return "\n\n".join(parts)


def _number(mean: float, error: float | None) -> str:
    return f"{mean:.3g}" if error is None else f"{mean:.3g} ± {error:.1g}"
