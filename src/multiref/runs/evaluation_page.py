"""report.html of `multiref evaluate`: who is better, by how much, and how sure that is; then every figure of everyone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multiref.report import Answer, Note, Picture, Section, Settings, Table, versions, write_page
from multiref.report.figures import intervals

Figures = Mapping[str, Mapping[str, list[float | None]]]  # who → metric → [mean, low, high], None where not known


def figure_text(mean: float | None, low: float | None, high: float | None) -> str:
    """A figure with its 95 % interval, as tables have it."""
    if mean is None:
        return "not known"
    return f"{mean:.4g}" if low is None or high is None else f"{mean:.4g} [{low:.4g}, {high:.4g}]"


def write_evaluation_page(path: Path, summary: Mapping[str, Any]) -> None:
    """The page of a summary as `PassAtK.summary` makes it."""
    policies: Figures = summary["policies"]
    differences: Figures = summary["differences"]
    asked = summary["settings"]
    metric = _metric(policies)
    picture = _picture(policies, metric)
    scope = f"{asked['prompts']} prompts × {asked['samples']} samples; 95 % intervals by bootstrap over the prompts"
    notes = [f"{scope}. They do not cover other prompts than these, nor another seed of training."]
    if len(policies) > 2:
        notes.append("The highest of several was picked after looking; its interval is that of one comparison.")
    write_page(
        path,
        f"{' · '.join(policies)}: the same prompts",
        Answer(_sentence(policies, differences, metric), [picture, Note(*notes)]),
        Section("Every figure", [figures_table(policies)], unfolded=True),
        Section("Paired differences", [figures_table(differences)] if differences else []),
        Section("Settings", [Settings(asked)]),
        Section("Versions", [Settings(versions())]),
    )


def _metric(policies: Figures) -> str:
    """The one that answers: J, else pass@k, else the whole reward."""
    known = list(next(iter(policies.values())))
    several = [name for name in known if sum(each[name][0] is not None for each in policies.values()) > 1] or known
    ranked = [name for prefix in ("J", "pass@", "reward/total", "reward/") for name in several if name.startswith(prefix)]
    return (ranked or several)[0]


def _sentence(policies: Figures, differences: Figures, metric: str) -> str:
    first, *others = policies
    compared = [name for name in others if differences[f"{name} − {first}"][metric][0] is not None]
    if not compared:
        return f"{first}: {metric} {figure_text(*policies[first][metric])}."
    best = max(compared, key=lambda name: policies[name][metric][0] or 0.0)
    mean, low, high = differences[f"{best} − {first}"][metric]
    assert mean is not None
    lead = f"The highest of {len(compared)}: " if len(compared) > 1 else ""
    if low is None or high is None:
        return f"{lead}{metric} of {best} is {mean:+.3g} against {first}; one prompt, or one value, gives no interval."
    interval = f"95 % interval {low:.3g} to {high:.3g}"
    if low <= 0 <= high:
        return f"{lead}{metric} of {best} and {first} cannot be told apart: {best} has {mean:+.3g} ({interval})."
    return f"{lead}{best} has {abs(mean):.3g} {'more' if mean > 0 else 'less'} {metric} than {first} ({interval})."


def _picture(policies: Figures, metric: str) -> Picture:
    """Everyone's mean with its interval, a row each."""
    rows = [(name, mean, low, high) for name, (mean, low, high) in ((name, each[metric]) for name, each in policies.items())]
    figure = intervals(rows, f"{metric}  (higher is better)")
    return Picture(figure, alt=f"{metric} of each with its 95 % interval", caption=f"{metric}, mean and 95 % interval.")


def figures_table(figures: Figures) -> Table:
    """A row a metric, a column a policy or a difference of two."""
    names = list(figures)
    metrics = list(figures[names[0]])
    return Table(("metric", *names), [[metric, *(figure_text(*figures[name][metric]) for name in names)] for metric in metrics])
