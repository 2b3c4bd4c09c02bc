"""The page of a real run: one table, one picture, what `inspect` said, and the seconds."""

from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from multiref.report import Answer, Note, Prose, Section, Settings, Table
from multiref.report.figures import GREY, MARKERS, PALETTE, canvas, finish, mark
from multiref_lab import page
from multiref_lab.real.equal_kl import compare, judge
from multiref_lab.real.problems import KINDS
from multiref_lab.real.run import Findings
from multiref_lab.real.settings import BASE, REFERENCES, SINGLE
from multiref_lab.stats import Measure, paired

UNIT = (
    "± is one standard error over questions; gains are paired, question by question, against the mean of the base's answers. "
    "An answer counts where it is finished and its last number is right."
)


EQUAL = (
    "Accuracy at T = 1 of each rule where its line from the base through its β reaches one KL(π‖base): the largest that every "
    "rule and seed reaches. ± is the deviation over bootstrap resamples of the questions, the same for all rules and seeds."
)


PICTURE = (
    "Share of right, finished answers at T = 1 against KL(π‖base), nats an answer; each rule at each β. Grey: models that "
    "were not trained here. Of several seeds the small points are single ones; the mean has the errors."
)
ALT = "Accuracy against KL to the base, by policy."


def write(findings: Findings, output: Path, *, command: str = "multiref real") -> Path:
    """report.html, results.json and figures/ in `output`; returns the page."""
    rows = table(findings)
    first, *others = sentences(findings)
    found = [Prose(f"Seed {seed}", *each.verdict.sentences) for seed, each in findings.inspections.items()]
    return page.write(
        output,
        "A real model, three references",
        Answer(first, [page.picture(_figure(findings), output / "figures" / "accuracy", PICTURE, ALT), Note(*others)]),
        Section("Every policy on the same questions", [rows]),
        *([Section("At equal KL", [equal_table(findings)])] if SINGLE not in findings.settings.rules else []),
        Section("What inspect said before training", found),
        Section("Seconds of each stage", [Settings({name: f"{each:.0f} s" for name, each in findings.seconds.items()})]),
        subtitle="multiref real",
        settings={"command": command, "model": findings.model, **vars(findings.settings)},
        results={"rows": [dict(zip(rows.header, row)) for row in rows.rows], "seconds": findings.seconds},
    )


def table(findings: Findings) -> Table:
    """Every policy and seed on the same questions."""
    header = ["policy", "seed", "right, greedy", "right, T = 1", "gain over base, T = 1", *(f"right, {kind}" for kind in KINDS)]
    header += ["finished", *(f"KL(π‖{name})" for name in REFERENCES), "tokens", "questions"]
    named = [(name, "", each) for name, each in findings.given.items()]
    named += [(f"{trial.rule}, β {trial.beta:g}", str(trial.seed), each) for trial, each in findings.trained.items()]
    rows = []
    for name, seed, each in named:
        gain = "" if name in REFERENCES else _text(each.sampled - findings.given[BASE].sampled[each.places])
        kinds = [_text(each.sampled[[k == kind for k in each.kinds]]) for kind in KINDS]
        kl = [_text(each.kls[reference]) for reference in REFERENCES]
        ends = f"{float(each.ended.mean()):.2f}", *kl, f"{float(each.tokens.mean()):.1f}", str(len(each.places))
        greedy = "" if each.greedy is None else _text(each.greedy)
        rows.append([name, seed, greedy, _text(each.sampled), gain, *kinds, *ends])
    s = findings.settings
    asked = f"{s.held_out} held-out questions, or evenly spread ones of them; KLs (nats an answer) on {s.few}. {UNIT}"
    return Table(header, rows, asked, frozenset(i for i, row in enumerate(rows) if row[0] in REFERENCES))


def equal_table(findings: Findings) -> Table:
    """Rules at one KL(π‖base), every seed and their mean."""
    price, levels = compare(findings)
    header = ["rule", "seed", "right, T = 1", "gain over base", "exact rule less this one", "Σ_k w_k KL(π‖π_k)"]
    rows = []
    for each in levels:
        seed = str(each.seeds[0]) if len(each.seeds) == 1 else "mean"
        behind = "" if each.behind is None else each.behind.text()
        rows.append([each.rule, seed, each.right.text(), each.gain.text(), behind, each.divergence.text()])
    caption = f"At KL(π‖base) = {price:.3f} nats, on {findings.settings.compared} questions. {EQUAL}"
    return Table(header, rows, caption, frozenset(i for i, row in enumerate(rows) if row[1] == "mean"))


def sentences(findings: Findings) -> list[str]:
    """What may be said of each trained policy against the base."""
    said = []
    for beta, gain, single in judge(findings) if len(findings.settings.seeds) > 1 else []:
        met = gain.mean > 2 * (gain.error or 0.0) and min(single) >= 0
        said.append(
            f"Exact rule, β {beta:g}, mean of {len(single)} seeds: gain over the base in right answers at T = 1 {gain.text()}; "
            f"single seeds {', '.join(f'{value:+.3f}' for value in single)}. The mark (above two errors, no seed below 0) is "
            f"{'met' if met else 'missed'}."
        )
    for trial, each in findings.trained.items():
        base = findings.given[BASE]
        found = paired(each.sampled.tolist(), base.sampled[each.places].tolist())
        price = Measure.of(each.kls[BASE].tolist()).text()
        said.append(
            f"{trial.rule}, β {trial.beta:g}, seed {trial.seed}, {findings.pairs[trial.seed]} pairs: gain over the base in "
            f"right answers at T = 1 {found.text()}; KL(π‖base) {price} nats."
        )
    if len(findings.settings.seeds) < 2:
        said.append("One seed: the errors are of the questions alone and say nothing about another training.")
    return said


def _figure(findings: Findings) -> Figure:
    figure, axes = canvas(6.0, 4.6)
    for place, (name, each) in enumerate(findings.given.items()):
        _mark(axes, each.kls[BASE], each.sampled, name, GREY, "X*p8"[place % 4])
    several = len(findings.settings.seeds) > 1
    for place, rule in enumerate(dict.fromkeys(trial.rule for trial in findings.trained)):
        turn, colour = divmod(place, len(PALETTE))  # a colour comes again with another marker
        style = PALETTE[colour], MARKERS[(colour + 3 * turn) % len(MARKERS)]
        label = f"{rule} alone" if rule in REFERENCES else rule
        for beta in dict.fromkeys(trial.beta for trial in findings.trained):
            policies = [each for trial, each in findings.trained.items() if (trial.rule, trial.beta) == (rule, beta)]
            for each in policies if several else ():
                axes.plot(each.kls[BASE].mean(), each.sampled.mean(), style[1], color=style[0], markersize=3, alpha=0.4)
            right, price = (torch.stack(each).mean(0) for each in zip(*((p.sampled, p.kls[BASE]) for p in policies)))
            _mark(axes, price, right, label, *style)
            label = "_"  # once in the legend
    return finish(figure, axes, "KL(π‖base), nats an answer", "right and finished, T = 1")


def _mark(axes: Axes, price: Tensor, right: Tensor, label: str, colour: str, marker: str) -> None:
    measures = Measure.of(price.tolist()), Measure.of(right.tolist())
    mark(axes, *measures, color=colour, marker=marker, markersize=7, label=label)


def _text(values: Tensor) -> str:
    return Measure.of(values.tolist()).text()
