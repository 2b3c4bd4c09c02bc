"""`python -m tests.zoo`: measures every type and writes docs/zoo.md; with names behind it, prints those only."""

import sys
import warnings
from datetime import date
from pathlib import Path

import transformers

from multiref.models.draws import ROUNDING
from tests.zoo.build import names
from tests.zoo.measure import TOLERANCE, Finding, measure

PAGE = Path(__file__).parents[2] / "docs" / "zoo.md"


def page(found: list[Finding]) -> str:
    """The table as Markdown: one row a type, and the counts above it."""
    built = [each for each in found if not each.built]
    scored = [each for each in built if "chosen" in (each.errors or {})]
    causal = [each for each in built if each.causal]
    batched = [each for each in scored if "batched" in (each.errors or {})]
    drawn = [each for each in built if "drawn" in (each.errors or {})]
    lines = [
        "# The zoo",
        "",
        f"Written by `python -m tests.zoo` on {date.today()} with transformers {transformers.__version__}. Every model type",
        "that transformers has for causal language modelling is built from a tiny configuration with random weights, and its",
        "scores are compared with plain float64 forward passes of one sequence at a time.",
        "",
        f"{len(found)} types, {len(built)} built, {len(causal)} of them causal; {len(scored)} scored, {len(batched)} in "
        f"batches, {len(drawn)} drawn from.",
        f"Wrong (a token off by {TOLERANCE:g} nats or more, drawn: by {ROUNDING[0]:g}): "
        f"{sum(bool(each.wrong) for each in built)}; two answers in evaluation mode: {sum(each.noisy for each in built)}.",
        "",
        "Errors are of a token's log-probability, float32 beside float64, the largest over the layout that stands and the",
        "slower ones; loaded: after saving and loading. Independent: a padded batch of plain passes gives each row what it has",
        "alone. A type that is not causal is refused. Drawn: how groups of three are drawn (with the model's cache, or by",
        "passes over whole rows where the cache goes wrong), and how far what the sampler says is from plain passes.",
        "Nemotron-H is the furthest: its whole passes keep time steps above a least one, its cached step does not.",
        "",
        "| type | causal | independent | layout | error | loaded | drawn |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in built:
        errors = dict(each.errors or {})
        again = f"{errors.pop('loaded'):.0e}" if "loaded" in errors else each.loaded
        said = f"{each.drawn}, {errors.pop('drawn'):.0e}" if "drawn" in errors else each.drawn
        worst = f"{max(errors.values()):.0e}" if errors else ""
        marks = ["yes" if flag else "no" for flag in (each.causal, each.independent)]
        lines.append(
            f"| {each.kind} | {marks[0]} | {marks[1]} | {_cell(each.layout)} | {worst} | {_cell(again)} | {_cell(said)} |"
        )
    lines += ["", "Not built, with the reason that transformers gives:", ""]
    lines += [f"- {each.kind}: {_cell(each.built, 90)}" for each in found if each.built]
    return "\n".join(lines) + "\n"


def _cell(text: str, width: int = 28) -> str:
    return text.replace("|", "/") if len(text) <= width else text.replace("|", "/")[: width - 1] + "…"


def main() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    found = []
    for kind, name in names().items():
        if sys.argv[1:] and kind not in sys.argv[1:]:
            continue
        found.append(measure(kind, name))
        print(found[-1], found[-1].wrong or "", flush=True)
    if not sys.argv[1:]:
        PAGE.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
