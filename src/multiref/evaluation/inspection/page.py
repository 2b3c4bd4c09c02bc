"""An inspection as one self-contained page with figures."""

import math
from dataclasses import replace
from pathlib import Path

from multiref.evaluation.inspection.inspection import Inspection
from multiref.evaluation.inspection.mixture import Contender, Weighting
from multiref.evaluation.inspection.tables import tables, token_level_table, token_lines
from multiref.report import Answer, Block, Formula, Note, Picture, Prose, Section, Settings, versions, write_page
from multiref.report.figures import GREY, MARKERS, PALETTE, canvas, intervals

MODEL = """P(chosen ≻ rejected) = σ( s · Σ_k w_k [log π_k(chosen) − log π_k(rejected)] ),   w on the simplex, s ≥ 0
convex in c = s · w ≥ 0 and solved exactly; every figure of merit is on prompts that the fit did not see"""


def write(path: Path, found: Inspection, *, data: str, store: str) -> None:
    """Write the page."""
    each, *together = tables(replace(found, token_level=None))
    own: list[Block] = [each, _calibration(found)]
    if signs := [f"{q.name}: {sign}" for q in found.references for sign in q.faults]:
        own.append(Note(*signs))
    mixture: list[Block] = [Formula(MODEL), *together]
    if found.weighting is not None and len(found.weighting.names) > 1:
        mixture.append(_weights(found.weighting))
    first, *others = found.verdict.sentences
    seen = [_gains(found.contenders)] if found.contenders else []
    tokens = [token_level_table(found.token_level)] if found.token_level is not None else []
    settings = {"data": data, "store": store, "pairs": found.pairs, "prompts": found.prompts, **versions()}
    write_page(
        path,
        "Does a second reference help?",
        Answer(first, [*seen, Note(*others)]),
        Section("Each reference by itself", own),
        Section("Mixtures", mixture),
        Section("Token by token", (*tokens, Prose(*token_lines(found)))),
        Section("Settings", (Settings(settings),)),
        subtitle=f"{', '.join(q.name for q in found.references)} on {data}",
    )


def _calibration(found: Inspection) -> Picture:
    figure, axes = canvas(6.0, 4.0)
    reach = max(part[0] for q in found.references for part in q.calibration)
    steps = [reach * n / 200 for n in range(201)]
    axes.plot(steps, [1 / (1 + math.exp(-step)) for step in steps], color=GREY, linewidth=1)
    for number, q in enumerate(found.references):
        sizes, right = [part[0] for part in q.calibration], [part[2] for part in q.calibration]
        axes.plot(sizes, right, linewidth=1, color=PALETTE[number % 6], marker=MARKERS[number % 6], label=q.name)
    axes.set_xlabel("|margin| in nats, ten bins of equal size")
    axes.set_ylabel("share of pairs where it is right")
    axes.legend(frameon=False, fontsize=9)
    caption = (
        "Is a larger margin more often right? The grey line is what σ(|margin|) claims; below it, a reference is overconfident."
    )
    return Picture(figure, "share of pairs ranked rightly against the size of the margin, per reference", caption)


def _gains(contenders: tuple[Contender, ...]) -> Picture:
    rows = sorted(contenders, key=lambda c: -c.gain)
    axis = "gain over the best single, nats per pair (95 %)"
    figure = intervals([(c.name, c.gain, c.gain - 1.96 * c.gain_error, c.gain + 1.96 * c.gain_error) for c in rows], axis)
    figure.axes[0].axvline(0, color=GREY, linewidth=1)
    return Picture(figure, "gain of each way to weigh references over the best single one", "Right of the line is better.")


def _weights(weighting: Weighting) -> Picture:
    rows = [(name, at, low, high) for name, at, (low, high) in zip(weighting.names, weighting.weights, weighting.intervals)]
    figure = intervals(rows, "weight, with its 95 % bootstrap interval over prompts")
    figure.axes[0].set_xlim(-0.02, 1.02)
    return Picture(figure, "fitted weights with intervals", "Weights of the references that the evidence supports.")
