"""A sweep's page, its figures and results.json."""

import dataclasses
from pathlib import Path
from typing import Any

from multiref.report import Answer, Block, Formula, Note, Picture, Prose, Section, Settings
from multiref_lab import page
from multiref_lab.frontier import figures
from multiref_lab.frontier.findings import Findings, Plane
from multiref_lab.frontier.rules import FORMULAS, LABELS
from multiref_lab.frontier.tables import answer, diversity_table, given_table, objective_table, sentences

ASKED = Formula(
    "J_α(π) = E_π[r(x, y)] − β (α KL(π‖π_1) + (1 − α) KL(π‖π_2))\n"
    "α = 1: reference 1 alone,  α = 0: reference 2 alone,  whatever the rule"
)


def write(findings: Findings, output: Path, *, command: str) -> Path:
    """report.html, figures/*.svg and *.png, results.json in `output`; returns the page. Errors: OutputError."""
    sections, values, pictures = [], [], []
    for plane in findings.planes:
        drawn = _pictures(findings, plane, output / "figures")
        pictures.append(drawn[0])
        sections.append(_section(findings, plane, drawn[1:]))
        values.append(_values(findings, plane))
    rules = {LABELS[rule]: FORMULAS[rule] for rule in findings.settings.chosen} | {"single reference": FORMULAS["single"]}
    minutes = sum(record.seconds for record in findings.records) / 60
    return page.write(
        output,
        "One weight, several rules",
        Answer(answer(findings), pictures),
        Section("What was asked", [Prose(*_question(findings)), ASKED]),
        *sections,
        *(Section(f"Untouched models, {task}", [given_table(findings, task)]) for task in findings.settings.tasks),
        Section("The rules", [Settings(rules)]),
        Section("What it took", [Prose(f"Processor time of {len(findings.records)} runs: {minutes:.1f} min.")]),
        subtitle=f"{findings.settings.training} training",
        settings={"command": command, **dataclasses.asdict(findings.settings)},
        results={"planes": values},
    )


def _question(findings: Findings) -> list[str]:
    s = findings.settings
    lines = [
        f"Two references and one weight α, {len(findings.weights)} values of it from 0 to 1, {s.seeds} seeds. Every rule is "
        "trained at each α and measured by the objective of that α, beside both single references, which are trained once and "
        "are the ends of the curves."
    ]
    if s.generated is not None:
        lines.append(
            "Task “generated”: word problems whose answers are all enumerated, so J, reward and KL are exact for each policy; "
            "errors are over seeds, which change prompts, answers, labels and order, not the world."
        )
    if (t := s.stories) is not None:
        lines.append(
            f"Task “stories”: a small real language model, openings of {t.prompt_words} words, completions cut at "
            f"{t.new_tokens} tokens, reward {t.scale:g} · Σ valence / √words. Everything is estimated, from {t.samples} "
            f"samples of each of {t.held_out} prompts a seed; errors are over seeds, which change prompts, pairs and samples. "
            "The best value J* is not known there."
        )
    return lines


def _section(findings: Findings, plane: Plane, pictures: list[Picture]) -> Section:
    said, inspection = sentences(findings, plane), findings.inspection(plane)
    blocks: list[Block] = [Note(*said), objective_table(findings, plane), *pictures, diversity_table(findings, plane)]
    if inspection is not None:
        blocks += [Prose("What `multiref inspect` says of the first seed's pairs: " + " ".join(inspection.verdict.sentences))]
    return Section(plane.title, blocks)


def _pictures(findings: Findings, plane: Plane, folder: Path) -> list[Picture]:
    """The objective first."""
    stem = f"{findings.settings.training}-{plane.task}"
    if len(findings.planes) > 1:
        stem += f"-beta{plane.beta:g}" + (f"-pairs{plane.pairs}" if plane.pairs else "")
    drawn = {
        "objective": (
            figures.objective,
            "The objective of each α, reached by each rule; bands are one standard error over seeds. A single reference is a "
            "straight line: J is linear in α.",
        ),
        "gap": (
            figures.gap,
            "What each rule misses of the best value, by α; dashed: what it would miss if it were trained perfectly.",
        ),
        "reward": (figures.reward, "Expected reward by α."),
        "plane": (
            figures.plane_of_reward,
            "Reward against the mean KL to both references. A line joins a rule's weights, larger marks a larger α; the black "
            "curve is the best there is at α = ½, so rules trained at another α aim beside it.",
        ),
    }
    if not findings.enumerated(plane.task):
        del drawn["gap"]
    return [page.picture(draw(findings, plane), folder / f"{stem}-{name}", caption) for name, (draw, caption) in drawn.items()]


def _values(findings: Findings, plane: Plane) -> dict[str, Any]:
    """Plain values of one plane: each number of each rule at each weight, seed by seed, the computed ends, and what is said."""
    said, inspection = sentences(findings, plane), findings.inspection(plane)
    rows = []
    for rule in findings.settings.chosen:
        for weight in findings.weights:
            trained, end = findings.trained(plane, rule, weight), findings.end(plane, rule, weight)
            best = findings.best(plane, weight)
            rows.append(
                {
                    "rule": rule,
                    "weight": weight,
                    "seeds": {number: trained.values(number) for number in ("J", "price", *trained.runs[0])},
                    "best_J": None if best is None else best.J,
                    "end": None if end is None else dataclasses.asdict(end),
                    "reward_missed": trained.missed(),
                    "disagreement": findings.disagreement(plane.task, weight),
                }
            )
    given = {**dataclasses.asdict(plane), "references": findings.names(plane.task), "rows": rows}
    return given | {"said": said, "inspection": None if inspection is None else str(inspection.verdict)}
