"""What a run shows: the model card beside the weights, and report.html; of every task from the same facts."""

import fnmatch
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from multiref.report import (
    Answer,
    Formula,
    Measure,
    ModelCard,
    Note,
    Picture,
    Prose,
    Section,
    Settings,
    Table,
    versions,
    write_page,
)
from multiref.report.figures import Curve, Plot
from multiref.runs.base import BaseRun, Facts

Lines = Sequence[dict[str, Any]]
_HELD_OUT = "eval_rewards/accuracies"
_UNSEEN = (
    "runtime",
    "per_second",
    "seconds/",
    "total_flos",
    "learning_rate",
    "grad_norm",
    "weights/",
    "preparation_time",
    "epoch",
    "wall",
    "processor",
)


def model_card(run: BaseRun, facts: Facts, lines: Lines) -> str:
    """The model card, as Markdown."""
    text = ModelCard(
        title=run.title or facts.asked,
        base_model=facts.base,
        objective=facts.objective,
        formula=facts.formula,
        references=facts.references,
        beta=facts.beta,
        data=facts.data,
        metrics=_final(lines) | facts.metrics,
        settings=run.plain(),
        limits=facts.limits,
        checks=facts.checks,
    ).markdown()
    return "\n".join(part for part in (text, facts.notes) if part)


def write_report(path: Path, run: BaseRun, facts: Facts, lines: Lines, timing: Sequence[dict[str, float]]) -> None:
    """report.html: what came out in a sentence and a figure; then what was asked, all numbers and curves, how long it took,
    settings and versions."""
    strength = "" if facts.beta is None else f", β = {facts.beta:g}"
    asked: list[Any] = [Prose(f"{facts.objective}{strength}, from {facts.base} on {facts.data}."), Formula(facts.formula)]
    if facts.references:
        rows = [[name, source, weight] for name, (source, weight) in facts.references.items()]
        asked.append(Table(("reference", "source", "weight"), rows))
    numbers = [[name, f"{value:.4g}"] for name, value in (_final(lines) | facts.metrics).items()]
    parts = list(dict.fromkeys(part for call in timing for part in call))
    spent = [[part, f"{sum(call.get(part, 0.0) for call in timing):.1f}"] for part in parts]
    metric, sentence = _answer(facts, lines)
    pictures = _pictures(facts, lines)
    first = pictures.pop(next((caption for caption in pictures if metric in facts.curves[caption]), ""), None)
    warnings = Note(*facts.limits, "One run with one seed: differences between runs need several.")
    write_page(
        path,
        run.title or facts.asked,
        Answer(sentence, [*([first] if first else []), *facts.tables, warnings]),
        Section("What was asked", asked),
        Section("All numbers", [Table(("metric", "last value"), numbers), *map(Prose, facts.checks)]),
        Section("Other curves", list(pictures.values())),
        Section("Time", [Table(("part", "seconds"), spent, caption=f"Sums over {len(timing)} calls.")]),
        Section("Settings", [Settings(run.plain())]),
        Section("Versions", [Settings(versions())]),
    )


def _answer(facts: Facts, lines: Lines) -> tuple[str, str]:
    """(metric, what came out in one sentence, with its standard error)."""
    share = _final(lines).get(_HELD_OUT)
    if share is not None and facts.held_out:
        error = math.sqrt(share * (1 - share) / facts.held_out)
        return _HELD_OUT, f"{share:.1%} ± {error:.1%} of {facts.held_out:,} held-out pairs are ranked rightly."
    series = {names[0]: [line[names[0]] for line in lines if line.get(names[0]) is not None] for names in facts.curves.values()}
    for name, values in sorted(series.items(), key=lambda each: len(set(each[1])) == 1):  # what never moved says least
        if values:
            fifth = max(1, len(values) // 5)
            early, late = (Measure.of(part).text() for part in (values[:fifth], values[-fifth:]))
            noise = " (± one standard error over steps)" if fifth > 1 else ""
            return name, f"{name}: {late} over the last fifth of the logged steps, after {early} over the first{noise}."
    return "", f"{facts.asked}: trained; no metric was logged."


def _final(lines: Lines) -> dict[str, float]:
    """The last value of each metric."""
    last: dict[str, float] = {}
    for line in lines:
        last |= {key: value for key, value in line.items() if isinstance(value, int | float) and key != "step"}
    return {key: value for key, value in last.items() if not any(part in key for part in _UNSEEN)}


def _pictures(facts: Facts, lines: Lines) -> dict[str, Picture]:
    """A figure for each group of metrics that has a value; a name that ends in * stands for all that begin so."""
    known = sorted({key for line in lines for key in line})
    pictures = {}
    for caption, wanted in facts.curves.items():
        series = []
        for name in (key for pattern in wanted for key in fnmatch.filter(known, pattern)):
            if points := [(line["step"], line[name]) for line in lines if name in line and line[name] is not None]:
                series.append(Curve(name, [x for x, _ in points], [y for _, y in points]))
        if series:
            figure = Plot("step", caption, series, log_x=False, log_y=False).figure()
            pictures[caption] = Picture(figure, alt=f"{caption} over steps", caption=caption)
    return pictures
