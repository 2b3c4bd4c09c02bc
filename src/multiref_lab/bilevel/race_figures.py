"""The race as figures and as a table: `python -m multiref_lab.bilevel.race_figures race.json docs/figures`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from multiref.errors import DataError
from multiref.report.figures import draw
from multiref_lab.claim import Curve, Figure
from multiref_lab.slopes import fit_slope

__all__ = ["GROUPS", "curve", "draw_all", "summary"]

GROUPS: dict[str, tuple[str, ...]] = {
    "objectives": ("bilevel U0 E3", "bilevel U1", "bilevel U1, Newton", "bilevel U2 E3", "bilevel U3 E3", "iterative RLHF", "GSHF"),
    "estimators": ("bilevel U0 E1", "bilevel U0 E2", "bilevel U0 E3", "bilevel U0 CG", "bilevel U1", "bilevel U1, single loop", "bilevel U1, momentum loop"),
    "direct": ("offline DPO", "online DPO", "XPO", "SAIL-DP", "SAIL-PP", "SAIL-PR", "bilevel U1"),
    "classes": ("iterative RLHF", "iterative RLHF, transformer reward", "online DPO", "online DPO, log-linear policy", "bilevel U1, Newton, log-linear policy"),
}  # fmt: skip
COSTS = (
    "bilevel U1",
    "bilevel U1, Newton",
    "bilevel U1, single loop",
    "bilevel U0 E2",
    "bilevel U0 CG",
    "iterative RLHF",
    "online DPO",
)


def curve(name: str, lines: list[dict[str, Any]], key: str, *, relative: bool = True, over: str = "labels") -> Curve:
    """A method's measurement over labels (or processor seconds), as a share of its first where `relative`: mean over seeds and the range of the seeds."""
    kept = [line for line in lines if key in line and line["labels"] > 0]
    first = torch.tensor(next(line[key] for line in lines if key in line)) if relative else torch.ones(1)
    values = torch.stack([torch.tensor(line[key]) / first for line in kept])
    return Curve(
        name,
        tuple(float(line[over]) for line in kept),
        tuple(values.mean(1).tolist()),
        "measured",
        tuple(values.amin(1).tolist()),
        tuple(values.amax(1).tolist()),
    )


def draw_all(methods: dict[str, list[dict[str, Any]]], folder: Path, *, prefix: str = "bilevel-race") -> list[Path]:
    """The gap over labels by group of methods, the gap of the learnt reward, and the shift of distribution: those whose methods are there."""
    drawn = {}
    for group, names in GROUPS.items():
        here = [name for name in names if name in methods]
        drawn[group] = Figure("labels", "share of J* − J(start) left", tuple(curve(n, methods[n], "gap") for n in here))
    drawn["cost"] = Figure(
        "processor seconds, five runs side by side",
        "share of J* − J(start) left",
        tuple(curve(n, methods[n], "gap", over="processor") for n in COSTS if n in methods),
    )
    rewarded = [n for n in GROUPS["objectives"] if n in methods]
    drawn["reward"] = Figure(
        "labels",
        "what the reward's own optimum would leave, share",
        tuple(curve(n, methods[n], "gap of the reward") for n in rewarded),
    )
    shifted = [n for n in ("bilevel U0 E3", "bilevel U1", "bilevel U3 E3") if n in methods]
    drawn["shift"] = Figure(
        "labels",
        "deviation of learnt minus true reward within a prompt",
        tuple(
            curve(f"{n}: {label}", methods[n], key, relative=False)
            for n in shifted
            for label, key in (("under its policy", "reward error here"), ("under the start", "reward error at start"))
        ),
    )
    paths = []
    for name, figure in drawn.items():
        if not figure.curves:  # none of its methods was raced
            continue
        path = folder / f"{prefix}-{name}.png"
        draw(figure, path, title="Transformers on an enumerable world: mean and range over seeds")
        paths.append(path)
    return paths


def summary(methods: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Rows of a table: share of the gap left at the end, labels to 5 %, slope over the last decade; the learnt reward's own share and slope; its error here and at
    the start; the win rate over the start; processor seconds."""
    rows = []
    for name, lines in methods.items():
        end, first = lines[-1], sum(lines[0]["gap"])
        reached = next((line["labels"] for line in lines if sum(line["gap"]) < 0.05 * first), None)
        cells = [name, f"{sum(end['gap']) / first:.3f}", f"{reached:,}" if reached else "—", _slope(lines, "gap")]
        if any(line["gap of the reward"] != lines[0]["gap of the reward"] for line in lines):  # else it has no reward model
            share = sum(end["gap of the reward"]) / first
            error = [sum(end[key]) / len(end[key]) for key in ("reward error here", "reward error at start")]
            cells += [f"{share:.4f}", _slope(lines, "gap of the reward"), f"{error[0]:.2f} / {error[1]:.2f}"]
        else:
            cells += ["", "", ""]
        cells.append(f"{sum(end['win rate']) / len(end['win rate']):.3f}")
        rows.append("| " + " | ".join([*cells, f"{end['processor']:.0f}"]) + " |")
    return rows


def _slope(lines: list[dict[str, Any]], key: str) -> str:
    kept = [line for line in lines if line["labels"] > 0]
    slope = fit_slope([line["labels"] for line in kept], torch.tensor([line[key] for line in kept]).T, decade=10.5)
    return f"{slope.value:.2f} [{slope.low:.2f}, {slope.high:.2f}]".replace("-", "−")


def main() -> None:
    """Draws the setting named by --setting and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("histories", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--setting", default="beta=0.5 seen=32 world=3")
    given = parser.parse_args()
    found = json.loads(given.histories.read_text(encoding="utf-8"))
    if given.setting not in found:
        raise DataError(f"{given.histories}: no setting {given.setting!r}; expected one of {', '.join(found)}")
    for path in draw_all(found[given.setting], given.folder):
        print(path)
    print("\n".join(summary(found[given.setting])))


if __name__ == "__main__":
    main()
