"""The page of a real run: one table, one picture, what `inspect` said, and the seconds."""

from itertools import pairwise
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from multiref.report import Answer, Note, Picture, Prose, Section, Settings, Table
from multiref.report.figures import GREY, MARKERS, PALETTE, canvas, finish, mark
from multiref_lab import page
from multiref_lab.real.problems import KINDS
from multiref_lab.real.run import Findings, Measured, Trial
from multiref_lab.real.settings import BASE, REFERENCES
from multiref_lab.stats import Measure, paired

UNIT = (
    "± is one standard error over questions; gains are paired, question by question, against the base of the same seed. "
    "An answer counts where it is finished and its last number is right."
)


EQUAL = (
    "Accuracy at T = 1 of each rule where its line from the base through its β reaches one KL(π‖base): the largest that every "
    "rule and seed reaches."
)


def write(findings: Findings, output: Path, *, command: str = "multiref real") -> Path:
    """report.html, results.json and figures/ in `output`; returns the page."""
    rows = table(findings)
    first, *others = sentences(findings)
    found = [Prose(f"Seed {seed}", *each.verdict.sentences) for seed, each in findings.inspections.items()]
    return page.write(
        output,
        "A real model, three references",
        Answer(first, [*_picture(findings, output / "figures"), Note(*others)]),
        Section("Every policy on the same questions", [rows]),
        *([Section("At equal KL", [Prose(EQUAL), equal_table(findings)])] if len(findings.settings.betas) > 1 else []),
        Section("What inspect said before training", found),
        Section("Seconds of each stage", [Settings({name: f"{each:.0f} s" for name, each in findings.seconds.items()})]),
        subtitle="multiref real",
        settings={"command": command, "model": findings.model, **vars(findings.settings)},
        results={"rows": [dict(zip(rows.header, row)) for row in rows.rows], "seconds": findings.seconds},
    )


def table(findings: Findings) -> Table:
    """Every policy and seed on the same questions."""
    header = ["policy", "seed", "right, greedy", "right, T = 1", "gain over base, T = 1", *(f"right, {kind}" for kind in KINDS)]
    header += ["finished", *(f"KL(π‖{name})" for name in REFERENCES), "tokens"]
    named = [(name, seed, each) for (name, seed), each in findings.given.items()]
    named += [(f"{trial.rule}, β {trial.beta:g}", trial.seed, each) for trial, each in findings.trained.items()]
    rows = []
    for name, seed, each in sorted(named, key=lambda row: row[1]):
        gain = "" if name in REFERENCES else _text(each.sampled - findings.given[BASE, seed].sampled)
        kinds = [_text(each.sampled[[k == kind for k in each.kinds]]) for kind in KINDS]
        kl = [_text(each.log_ratios[reference]) for reference in REFERENCES]
        ends = f"{float(each.ended.mean()):.2f}", *kl, f"{float(each.tokens.mean()):.1f}"
        greedy = "" if each.greedy is None else _text(each.greedy)
        rows.append([name, str(seed), greedy, _text(each.sampled), gain, *kinds, *ends])
    s = findings.settings
    asked = f"{s.held_out} held-out questions; KLs (nats an answer) and specialists on {s.few} of them. {UNIT}"
    return Table(header, rows, asked, frozenset(i for i, row in enumerate(rows) if row[0] in REFERENCES))


def equal_table(findings: Findings) -> Table:
    """Rules at one KL(π‖base), interpolated between the base and the βs, gains paired with the base, every seed shown."""
    lines: dict[tuple[str, int], list[tuple[float, Tensor]]] = {}
    for trial, each in findings.trained.items():
        base = (0.0, findings.given[BASE, trial.seed].sampled)
        lines.setdefault((trial.rule, trial.seed), [base]).append((float(each.log_ratios[BASE].mean()), each.sampled))
    price = min(max(kl for kl, _ in line) for line in lines.values())
    rows = []
    for (rule, seed), line in lines.items():
        right = _at(price, sorted(line, key=lambda point: point[0]))
        rows.append([rule, str(seed), _text(right), _text(right - line[0][1])])
    return Table(["rule", "seed", "right, T = 1", "gain over base"], rows, f"At KL(π‖base) = {price:.3f} nats. {UNIT}")


def _at(price: float, line: list[tuple[float, Tensor]]) -> Tensor:
    """[Q]: correctness, each question's interpolated linearly in the KL."""
    for (low, below), (high, above) in pairwise(line):
        if low <= price <= high:
            share = (price - low) / max(high - low, 1e-9)
            return (1 - share) * below + share * above
    return line[-1][1]


def sentences(findings: Findings) -> list[str]:
    """What may be said of each trained policy against the base, and against the others of its seed."""
    said = []
    for trial, each in findings.trained.items():
        base = findings.given[BASE, trial.seed]
        found = paired(each.sampled.tolist(), base.sampled.tolist())
        price = Measure.of(each.log_ratios[BASE].tolist()).text()
        said.append(
            f"{trial.rule}, β {trial.beta:g}, seed {trial.seed}: {findings.pairs[trial.seed]} pairs; right at T = 1 by "
            f"{found.text()} against the base, at KL(π‖base) {price} nats."
        )
    if len(findings.settings.seeds) < 2:
        said.append("One seed: the errors are of the questions alone and say nothing about another training.")
    return said


def _picture(findings: Findings, folder: Path) -> list[Picture]:
    figure = _figure(findings)
    caption = (
        "Share of right, finished answers at T = 1 against KL(π‖base), nats an answer. Grey: models that were not trained here."
    )
    return [page.picture(figure, folder / "accuracy", caption, "Accuracy against KL to the base, by policy.")]


def _figure(findings: Findings) -> Figure:
    figure, axes = canvas(6.0, 4.6)
    for place, ((name, seed), each) in enumerate(findings.given.items()):
        _mark(axes, each, f"{name}, seed {seed}", GREY, "Xph8"[place % 4])
    for place, (trial, each) in enumerate(findings.trained.items()):
        _mark(axes, each, _label(trial), PALETTE[place % len(PALETTE)], MARKERS[place % len(MARKERS)])
    return finish(figure, axes, "KL(π‖base), nats an answer", "right and finished, T = 1")


def _mark(axes: Axes, each: Measured, label: str, colour: str, marker: str) -> None:
    price, right = Measure.of(each.log_ratios[BASE].tolist()), Measure.of(each.sampled.tolist())
    mark(axes, price, right, color=colour, marker=marker, markersize=7, label=label)


def _label(trial: Trial) -> str:
    return f"{trial.rule}, β {trial.beta:g}, seed {trial.seed}"


def _text(values: Tensor) -> str:
    return Measure.of(values.tolist()).text()
