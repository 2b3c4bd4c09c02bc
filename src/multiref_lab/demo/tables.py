"""Findings as rows of text: the same tables for the terminal and for the page, and the answer in a sentence."""

from multiref.report import Table
from multiref_lab.demo.authors import REFERENCES
from multiref_lab.demo.corpus import SKILLS
from multiref_lab.demo.run import OPTIMUM, Findings
from multiref_lab.demo.settings import EXACT
from multiref_lab.stats import Difference, Measure, paired


def values(findings: Findings, rule: str, number: str) -> list[float]:
    """One number of one rule, by seed."""
    return [run["numbers"][number] for run in findings.runs[rule]]


def difference(findings: Findings, rule: str, number: str = "J") -> Difference:
    """`rule` minus the exact rule, seed by seed."""
    return paired(values(findings, rule, number), values(findings, EXACT, number))


def common_table(findings: Findings) -> Table:
    """Every policy on the one yardstick: the objective as stated."""
    numbers = {"J": "J as asked", "gap": "KL(π‖π*)", "reward": "reward E_π[r]"}
    numbers |= {f"kl/{name}": f"KL(π‖{name})" for name in REFERENCES}
    numbers |= {f"accuracy/{skill}": f"accuracy “{skill}”" for skill in SKILLS}
    first, second, *others = numbers.values()
    header = ["trained under", first, second, "J − J of the exact rule, paired", *others, "reward missed at its own KL"]
    rows = []
    for rule in findings.rules:
        cells = [Measure.of(values(findings, rule.name, number)).text() for number in numbers]
        against = "" if rule.name == EXACT else difference(findings, rule.name).text()
        rows.append([rule.name, *cells[:2], against, *cells[2:], Measure.of(findings.missed[rule.name]).text()])
    for name, measured in findings.given.items():
        cells = [Measure(measured[number]).text() for number in numbers]
        rows.append([name, *cells[:2], "", *cells[2:], ""])
    seeds = findings.settings.seeds
    caption = (
        f"Means over {seeds} seeds ± one standard error; exact on {findings.settings.held_out_prompts} held-out prompts. "
        "KL in nats per completion."
    )
    return Table(header, rows, caption, frozenset(range(len(findings.rules), len(rows))))


def own_table(findings: Findings) -> Table:
    """Each rule by its own objective: how near training came to what the rule asks for, and where the rule leads when it is
    reached."""
    header = ["rule", "its own objective", "its value", "its best value", "own regret"]
    header += ["J as asked at its own optimum", "KL(π*_rule‖π*)"]
    rows = []
    for rule in findings.rules:
        own = [Measure.of(values(findings, rule.name, number)).text() for number in ("own/J", "own/best", "own/regret")]
        own[1] = Measure(findings.runs[rule.name][0]["numbers"]["own/best"]).text()
        end = findings.ends[rule.name]
        rows.append([rule.name, rule.formula, *own, Measure(end["J"]).text(), Measure(end["gap"]).text()])
    caption = "Own regret is what training left undone; the last two columns are exact and know nothing of training."
    return Table(header, rows, caption)


def against_table(findings: Findings) -> Table:
    """Each rule against the exact one, seed by seed: what it gains in reward and pays in KL; and its own optimum."""
    header = ["rule, less the exact one", "J", "told apart?", "reward", "weighted KL"]
    header += ["reward missed at its own KL", "J lost if trained perfectly"]
    best = findings.ends[EXACT]["J"]
    rows = []
    for rule in findings.rules:
        if rule.name != EXACT:
            found = [difference(findings, rule.name, number) for number in ("J", "reward", "price")]
            j, reward, price = (each.text().removesuffix(" (within noise)") for each in found)
            missed = Measure.of(findings.missed[rule.name]).text()
            lost = f"{best - findings.ends[rule.name]['J']:.3f}"
            rows.append([rule.name, j, _told_apart(found[0]), reward, price, missed, lost])
    return Table(header, rows, "Paired differences over seeds ± one standard error.")


def _told_apart(found: Difference) -> str:
    if found.within_noise:
        return "no: within noise"
    return "lower" if found.mean < 0 else "HIGHER"


def answer(findings: Findings) -> str:
    """What the demo found, in one sentence."""
    left = Measure.of([findings.given[OPTIMUM]["J"] - j for j in values(findings, EXACT, "J")]).text()
    others = {rule.name: difference(findings, rule.name) for rule in findings.rules if rule.name != EXACT}
    nearest = max(others, key=lambda name: others[name].mean)
    size = others[nearest].text().removesuffix(" (within noise)")
    told = _told_apart(others[nearest])
    against = f"is not told apart from it ({size})" if others[nearest].within_noise else f"ends {told} in J by {size[1:]}"
    return (
        f"The exact rule (reverse KL, both references) ends {left} below the optimum of the objective as asked; "
        f"the nearest other rule ({nearest}) {against}."
    )
