"""The report of a run that buys labels: what was measured, over labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["write_report"]

_SHOWN = {
    "true objective": "the hidden reward less β times the penalty, on fresh rollouts: what the run is for",
    "hidden reward": "the reward behind the oracle, on fresh rollouts; the method never sees it",
    "reward error here": "standard deviation of the learnt reward's error under the current policy …",
    "reward error at start": "… and under the policy that training began with: the difference is the shift of distribution",
    "upper loss": "cross-entropy of the fresh labels under the learnt reward (for U3 the share of lost comparisons)",
    "loss": "the last step's loss on labelled pairs",
    "reward loss": "cross-entropy of the labels so far under the learnt reward",
    "hypergradient norm": "norm of the outer step's estimate",
}


def write_report(path: Path, history: Any, settings: dict[str, Any]) -> None:
    """One page: a figure for each quantity that was logged, and the settings."""
    from multiref.report import Picture, Prose, Section, Settings, write_page
    from multiref.report.figures import Series, curves, svg

    last = history.lines[-1]
    names = {**_SHOWN, **{name: "KL of the policy to this reference, nats" for name in last if name.startswith("kl/")}}
    pictures = []
    for name, caption in names.items():
        labels, values = history.series(name)
        if labels:
            shown = [value if isinstance(value, list) else [value] for value in values]
            figure = curves([Series(history.method, labels, shown)], x="labels", y=name)
            errors = history.series(f"{name}, standard error")[1]
            spread = (
                f" Standard error of a point: {errors[0][0]:.2g} at the start, {errors[-1][0]:.2g} at the end."
                if errors
                else ""
            )
            pictures.append(Picture(svg(figure), alt=f"{name} over labels", caption=f"{name}: {caption}.{spread}"))
    asked = f"{history.method} at β = {settings['beta']:g} against {len(settings['references'])} references; {last['wall']:.0f} s of training."
    write_page(
        path,
        f"{history.method}: {last['labels']} labels",
        Section("What was asked", [Prose(asked)]),
        Section("What came out", pictures),
        Section("Settings", [Settings(settings)]),
    )
