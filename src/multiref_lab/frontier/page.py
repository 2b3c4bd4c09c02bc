"""A sweep's page, its figures and results.json."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from multiref._files import write_whole
from multiref.errors import OutputError, StoreError
from multiref.report import Formula, Note, Picture, Prose, Section, Settings, versions, write_page
from multiref.report.figures import save
from multiref_lab.frontier import figures
from multiref_lab.frontier.findings import Findings, Plane
from multiref_lab.frontier.rules import FORMULAS, LABELS
from multiref_lab.frontier.settings import Generated
from multiref_lab.frontier.tables import diversity_table, given_table, objective_table, sentences

__all__ = ["write"]

ASKED = Formula(
    "J_α(π) = E_π[r(x, y)] − β (α KL(π‖π_1) + (1 − α) KL(π‖π_2))\nα = 1: reference 1 alone,  α = 0: reference 2 alone,  whatever the rule"
)


def write(findings: Findings, output: Path, *, command: str) -> Path:
    """report.html, figures/*.svg and *.png, results.json in `output`; returns the page. Errors: OutputError."""
    blocks: list[Any] = [Section("What was asked", [Prose(*_question(findings)), ASKED])]
    answers: list[dict[str, Any]] = []
    for plane in findings.planes:
        section, answer = _plane(findings, plane, output / "figures")
        blocks.append(section)
        answers.append(answer)
    for task in findings.settings.tasks:
        blocks.append(Section(f"Untouched models, {task}", [given_table(findings, task)]))
    rules = {
        "single reference" if rule == "single" else LABELS[rule]: FORMULAS[rule]
        for rule in (*findings.settings.chosen, "single")
    }
    seconds = {f"processor time of {len(findings.records)} runs": f"{sum(r.seconds for r in findings.records) / 60:.1f} min"}
    blocks += [
        Section("The rules", [Settings(rules)]),
        Section("Settings", [Settings({"command": command, **dataclasses.asdict(findings.settings), **seconds})]),
        Section("Versions", [Settings(versions())]),
    ]
    page = write_page(
        output / "report.html", "One weight, several rules", *blocks, subtitle=f"{findings.settings.training} training"
    )
    _results(findings, answers, output / "results.json", command)
    return page


def _question(findings: Findings) -> list[str]:
    s = findings.settings
    lines = [
        f"Two references and one weight α, {len(findings.alphas)} values of it from 0 to 1, {s.seeds} seeds. Every rule is trained at each α and measured by "
        "the objective of that α, beside both single references, which are trained once and are the ends of the curves."
    ]
    if isinstance(s.generated, Generated):
        lines.append(
            "Task “generated”: word problems whose answers are all enumerated, so J, reward and KL are exact for each policy; errors are over seeds, which "
            "change prompts, answers, labels and order, not the world."
        )
    if s.stories is not None:
        t = s.stories
        lines.append(
            f"Task “stories”: a small real language model, openings of {t.prompt_words} words, completions cut at {t.new_tokens} tokens, reward {t.scale:g} · Σ "
            f"valence / √words. Everything is estimated, from {t.samples} samples of each of {t.held_out} prompts a seed; errors are over seeds, which change "
            "prompts, pairs and samples. The best value J* is not known there."
        )
    return lines


def _plane(findings: Findings, plane: Plane, folder: Path) -> tuple[Section, dict[str, Any]]:
    several = len(findings.planes) > 1
    stem = f"{findings.settings.training}-{plane.task}" + (
        f"-beta{plane.beta:g}" + (f"-pairs{plane.pairs}" if plane.pairs else "") if several else ""
    )
    said, inspection = sentences(findings, plane), findings.inspection(plane)
    pictures = [
        Picture(save(figure, folder / f"{stem}-{name}")[0].read_bytes(), said_of_it, said_of_it)
        for name, figure, said_of_it in _drawn(findings, plane)
    ]
    blocks: list[Any] = [Note(*said), objective_table(findings, plane), *pictures, diversity_table(findings, plane)]
    if inspection is not None:
        blocks += [Prose("What `multiref inspect` says of the first seed's pairs: " + " ".join(inspection.verdict.sentences))]
    size = f", {plane.pairs:,} pairs" if plane.pairs else ""
    answer = _answer(findings, plane, said) | {"inspection": None if inspection is None else str(inspection.verdict)}
    return Section(f"{plane.task}, β = {plane.beta:g}{size}", blocks), answer


def _drawn(findings: Findings, plane: Plane) -> list[tuple[str, Any, str]]:
    drawn = [
        (
            "objective",
            figures.objective(findings, plane),
            "The objective of each α, reached by each rule; bars are one standard error over seeds. A single reference is a straight line: J is linear in α.",
        )
    ]
    if findings.exact_place(plane, 0.5) is not None:
        drawn.append(
            (
                "gap",
                figures.gap(findings, plane),
                "What each rule misses of the best value, by α; dashed: what it would miss if it were trained perfectly.",
            )
        )
    drawn.append(("reward", figures.reward(findings, plane), "Expected reward by α."))
    drawn.append(
        (
            "plane",
            figures.plane_of_reward(findings, plane),
            "Reward against the mean KL to both references. A line joins a rule's weights, larger marks a larger α; the black curve is the best there is at α = ½, so rules "
            "trained at another α aim beside it.",
        )
    )
    return drawn


def _answer(findings: Findings, plane: Plane, said: list[str]) -> dict[str, Any]:
    """Plain values of one plane: each number of each rule at each α, seed by seed, and the computed ends."""
    rows = []
    for rule in findings.settings.chosen:
        for alpha in findings.alphas:
            numbers = {"J": findings.values(plane, rule, alpha, "J"), "price": findings.values(plane, rule, alpha, "price")}
            numbers |= {
                name: findings.values(plane, rule, alpha, name) for name in findings.runs(plane, rule, alpha)[0].numbers
            }
            best, end = findings.exact_place(plane, alpha), findings.end(plane, rule, alpha)
            rows.append(
                {
                    "rule": rule,
                    "alpha": alpha,
                    "seeds": numbers,
                    "best_J": None if best is None else best.J,
                    "end": None if end is None else dataclasses.asdict(end),
                    "reward_missed": findings.missed(plane, rule, alpha, at=alpha),
                    "disagreement": findings.disagreement(plane.task, alpha),
                }
            )
    return {**dataclasses.asdict(plane), "references": findings.names(plane.task), "rows": rows, "said": said}


def _results(findings: Findings, answers: list[dict[str, Any]], path: Path, command: str) -> None:
    content = {"command": command, "settings": dataclasses.asdict(findings.settings), "versions": versions(), "planes": answers}
    try:
        write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    except StoreError as error:
        raise OutputError(str(error)) from None
