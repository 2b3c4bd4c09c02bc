"""The demo's page and figures."""

import dataclasses
from pathlib import Path

from matplotlib.figure import Figure

from multiref.report import Answer, Formula, Note, Picture, Prose, Section, Settings
from multiref.report.figures import Curve, Method, Plot, Point, frontier, objective_by_method
from multiref_lab import page
from multiref_lab.demo.run import OPTIMUM, Findings
from multiref_lab.demo.tables import against_table, answer, common_table, own_table, values
from multiref_lab.stats import Measure


def write(findings: Findings, output: Path, *, command: str = "multiref demo") -> Path:
    """report.html and figures/*.svg, *.png in `output`; returns the page."""
    s = findings.settings
    shown = ", ".join(f"{w:g}" for w in s.weights)
    asked = Formula(
        f"J(π) = E_π[r(x, y)] − β Σ_k w_k KL(π(·|x) ‖ π_k(·|x)),     β = {s.beta:g},  w = ({shown}),  π_k = adder, picker"
    )
    optimum = Formula("π*(y|x) ∝ Π_k π_k(y|x)^w_k · exp(r(x, y) / β),     J* − J(π) = β KL(π ‖ π*)")
    plane, *others = _pictures(findings, output / "figures")
    return page.write(
        output,
        "Two references, five rules, one yardstick",
        Answer(answer(findings), [plane, Note(*limits(findings))]),
        Section("What was asked", [Prose(*_question(findings)), asked, optimum]),
        Section("Every policy on one yardstick", [common_table(findings), against_table(findings)]),
        Section("What each rule itself asks for", [Prose(OWN), own_table(findings)]),
        Section("On the way there", others),
        Section("The rules", [Settings({rule.name: f"{rule.formula}   ({rule.why})" for rule in findings.rules})]),
        subtitle="multiref demo",
        settings={"command": command, **dataclasses.asdict(s)},
    )


OWN = (
    "Each rule is also held to its own standard: its own objective, the best value that objective can have, and the difference "
    "(own regret), which is what training left undone. The last columns say where the rule would lead if training were "
    "perfect, by the yardstick above."
)


def _question(findings: Findings) -> list[str]:
    return [
        "A small language model that answers two kinds of word problems badly is trained on preferences. Two frozen "
        "references, each good at one kind and confused about the other, say what it must stay near. An answer is two words, "
        f"so all {findings.answers} answers to a prompt are enumerated and every number below is exact for the policy it "
        "describes: nothing is sampled, nothing renormalised.",
        f"Reward: {findings.settings.law.scale:g} for each answer digit that is right. Preferences: two different answers, "
        "each drawn from the references' mean; the first is preferred with probability σ(difference of rewards).",
        f"The references disagree by −log F = {findings.disagreement:.3f} nats per completion: no policy has a smaller "
        "weighted KL than that.",
    ]


def limits(findings: Findings) -> list[str]:
    """What the numbers do not show."""
    n = findings.settings.seeds
    test = (
        "With one seed nothing can be told apart."
        if n < 2
        else f"“Within noise” means that a paired t-test over {n} seeds at the 5 % level, "
        "not corrected for several comparisons, sees no difference."
    )
    return [
        f"{test} A seed changes prompts, answers, labels and the order of training; the world (base and references) is one and "
        "the same, so the errors say nothing about other worlds."
    ]


def _pictures(findings: Findings, folder: Path) -> list[Picture]:
    """Draws and saves the figures; the one that answers comes first."""
    best = findings.given[OPTIMUM]
    untouched = {name: row for name, row in findings.given.items() if name != OPTIMUM}
    methods = [Method(rule.name, [best["J"] - j for j in values(findings, rule.name, "J")]) for rule in findings.rules]
    methods += [Method(name, [best["J"] - row["J"]], given=True) for name, row in untouched.items()]
    points = [Point(rule.name, *_both(findings, rule.name)) for rule in findings.rules]
    points += [Point(name, Measure(row["price"]), Measure(row["reward"]), given=True) for name, row in untouched.items()]
    optimum, beta = (best["price"], best["reward"]), findings.settings.beta
    return [
        page.picture(
            frontier(points, findings.frontier, optimum=optimum, beta=beta),
            folder / "frontier",
            "What was bought and at which price. No policy lies above the curve. Distance below the dashed line is J* − J(π).",
            "Expected reward against weighted KL to the references, with the curve of exact optima.",
        ),
        page.picture(
            objective_by_method(methods, axis="J* − J(π) = β KL(π‖π*), as asked  (log; lower is better)", scale="log"),
            folder / "objective",
            "What is missing to the best value of the objective as asked. Large marks: mean and standard error over seeds; "
            "ticks: each seed; grey: models that were not trained here.",
            "What each rule's policy misses of the best objective as asked: mean and standard error over seeds, "
            "each seed a tick.",
        ),
        page.picture(
            _over_pairs(findings, "gap", "KL(π‖π*), nats per completion  (log)"),
            folder / "gap",
            "Distance to the optimum of the objective as asked, while training. Only the exact rule is pulled to zero; "
            "the others settle at a distance.",
            "Distance to the exact optimum while training, by rule.",
        ),
        page.picture(
            _over_pairs(findings, "own/regret", "own objective: best − reached  (log)"),
            folder / "regret",
            "Each rule by its own objective: what training has left undone. Scales differ between rules.",
            "Regret of each rule in its own objective while training.",
        ),
    ]


def _both(findings: Findings, rule: str) -> tuple[Measure, Measure]:
    return Measure.of(values(findings, rule, "price")), Measure.of(values(findings, rule, "reward"))


def _over_pairs(findings: Findings, number: str, axis: str) -> Figure:
    """A number of every rule while it trains."""
    found = []
    for rule in findings.rules:
        points = list(zip(*(run["curve"] for run in findings.runs[rule.name]), strict=False))
        seeds = [[max(way[number], 1e-6) for way in point] for point in points]
        found.append(Curve.of_seeds(rule.name, [point[0]["pairs"] for point in points], seeds))
    return Plot("preference pairs seen", axis, found, log_x=False).figure()
