"""Findings as rows of text: the same tables for the terminal and for the page, and what may be said about the differences."""

from multiref.report import Table
from multiref_lab.demo.authors import REFERENCES
from multiref_lab.demo.corpus import SKILLS
from multiref_lab.demo.rules import EXACT
from multiref_lab.demo.run import Findings
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


def verdicts(findings: Findings) -> list[str]:
    """One line a rule: better, worse, or not told apart from the exact rule by J; what it gains in reward and pays in KL;
    and its own optimum."""
    best = findings.ends[EXACT]["J"]
    lines = []
    for rule in findings.rules:
        if rule.name == EXACT:
            continue
        found = difference(findings, rule.name)
        size = found.text().removesuffix(" (within noise)")
        if found.within_noise:
            said = f"J differs from the exact rule's by {size}: within noise, these seeds do not tell the two apart."
        elif found.mean < 0:
            said = f"J is lower than under the exact rule by {size.lstrip('−')}."
        else:
            size = size.lstrip("+")
            said = f"J is HIGHER than under the exact rule by {size}: here the rule that aims elsewhere was trained better."
        lost = best - findings.ends[rule.name]["J"]
        reward, price = (difference(findings, rule.name, number).text() for number in ("reward", "price"))
        missed = Measure.of(findings.missed[rule.name]).text()
        lines.append(
            f"{rule.name}: {said} Against it: reward {reward}, weighted KL {price}; "
            f"it misses {missed} of the reward that this KL "
            f"could buy. Trained perfectly, the rule would lose {lost:.3f} of J."
        )
    return lines
