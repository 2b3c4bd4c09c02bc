"""The race as figures and as a table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from multiref.report.figures import Curve, Plot, draw
from multiref_lab.stats import fit_slope

Lines = Sequence[Mapping[str, Any]]  # of a history: labels, processor seconds, and measurements with the seeds in a list

GROUPS: dict[str, tuple[str, ...]] = {
    "objectives": (
        "bilevel likelihood covariance",
        "bilevel stop gradient",
        "bilevel stop gradient, Newton",
        "bilevel debiased covariance",
        "bilevel win rate covariance",
        "iterative RLHF",
        "GSHF",
    ),
    "estimators": (
        "bilevel likelihood two policies",
        "bilevel likelihood shared rollouts",
        "bilevel likelihood covariance",
        "bilevel likelihood conjugate gradient",
        "bilevel stop gradient",
        "bilevel stop gradient, single loop",
        "bilevel stop gradient, momentum loop",
    ),
    "direct": ("offline DPO", "online DPO", "XPO", "SAIL-DP", "SAIL-PP", "SAIL-PR", "bilevel stop gradient"),
    "classes": (
        "iterative RLHF",
        "iterative RLHF, transformer reward",
        "online DPO",
        "online DPO, log-linear policy",
        "bilevel stop gradient, Newton, log-linear policy",
    ),
}
COSTS = (
    "bilevel stop gradient",
    "bilevel stop gradient, Newton",
    "bilevel stop gradient, single loop",
    "bilevel likelihood shared rollouts",
    "bilevel likelihood conjugate gradient",
    "iterative RLHF",
    "online DPO",
)
SHIFTED = ("bilevel likelihood covariance", "bilevel stop gradient", "bilevel win rate covariance")


def curve(name: str, lines: Lines, key: str, *, relative: bool = True, over: str = "labels") -> Curve:
    """A method's measurement over labels (or processor seconds), as a share of its first where `relative`:
    mean and range over seeds.
    """
    kept = [line for line in lines if key in line and line["labels"] > 0]
    first = torch.tensor(next(line[key] for line in lines if key in line)) if relative else torch.ones(1)
    values = torch.stack([torch.tensor(line[key]) / first for line in kept])
    x = [float(line[over]) for line in kept]
    return Curve(name, x, values.mean(1).tolist(), "measured", values.amin(1).tolist(), values.amax(1).tolist())


def draw_all(methods: Mapping[str, Lines], folder: Path, *, prefix: str = "bilevel-race") -> list[Path]:
    """The gap over labels by group of methods, the gap of the learnt reward, and the shift of distribution:
    those whose methods are there.
    """

    def among(names: Sequence[str]) -> list[str]:
        return [name for name in names if name in methods]

    left = "share of J* − J(start) left"
    drawn = {
        group: Plot("labels", left, [curve(n, methods[n], "gap") for n in among(names)]) for group, names in GROUPS.items()
    }
    costs = [curve(n, methods[n], "gap", over="processor") for n in among(COSTS)]
    drawn["cost"] = Plot("processor seconds, five runs side by side", left, costs)
    learnt = [curve(n, methods[n], "gap of the reward") for n in among(GROUPS["objectives"])]
    drawn["reward"] = Plot("labels", "what the reward's own optimum would leave, share", learnt)
    errors = (("under its policy", "reward error here"), ("under the start", "reward error at start"))
    shift = [curve(f"{n}: {label}", methods[n], key, relative=False) for n in among(SHIFTED) for label, key in errors]
    drawn["shift"] = Plot("labels", "deviation of learnt minus true reward within a prompt", shift)
    paths = []
    for name, figure in drawn.items():
        if figure.curves:  # else none of its methods was raced
            paths.append(folder / f"{prefix}-{name}.png")
            draw(figure, paths[-1], title="Transformers on an enumerable world: mean and range over seeds")
    return paths


def summary(methods: Mapping[str, Lines]) -> list[str]:
    """Rows of a table: share of the gap left at the end, labels to 5 %, slope over the last decade;
    the learnt reward's own share and slope.

    Then its error here and at the start; the win rate over the start; processor seconds.
    """
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


def _slope(lines: Lines, key: str) -> str:
    kept = [line for line in lines if line["labels"] > 0]
    slope = fit_slope([line["labels"] for line in kept], torch.tensor([line[key] for line in kept]).T, decade=10.5)
    return f"{slope.value:.2f} [{slope.low:.2f}, {slope.high:.2f}]".replace("-", "−")
