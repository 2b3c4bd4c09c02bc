"""Findings as rows of text, and what may be said about the differences."""

from collections.abc import Iterator

from multiref.report import Table
from multiref_lab.frontier.findings import Findings, Plane, Trained
from multiref_lab.frontier.grid import OWN_ENDS
from multiref_lab.frontier.rules import LABELS, alone
from multiref_lab.stats import Difference, Measure, paired


def objective_table(findings: Findings, plane: Plane) -> Table:
    """At each weight every rule by the objective of that weight, the single references among them."""
    one, two = findings.names(plane.task)
    exact = findings.enumerated(plane.task)
    header = ["trained under", "α", "J_α", "J_α − exact's, paired", "reward", "reward − exact's, paired"]
    header += [f"KL(π‖{one})", f"KL(π‖{two})"]
    header += ["J*_α − J_α", "the same at the rule's own optimum", "reward missed at its own KL"] if exact else []
    rows: list[list[str]] = []
    quiet: set[int] = set()
    for at in findings.weights:
        for name, trained in _rows(findings, plane, at):
            if trained.weight != at:
                quiet.add(len(rows))
            cells = []
            for number in ("J", "reward"):
                itself = (trained.rule, trained.weight) == ("exact", at)
                cells += [trained.measure(number, at=at).text(), "" if itself else trained.against_exact(number, at=at).text()]
            cells += [trained.measure(f"kl/{reference}").text() for reference in (one, two)]
            rows.append([name, f"{at:g}", *cells, *_to_the_best(trained, at)])
    caption = (
        f"Means over {findings.settings.seeds} seeds ± one standard error; KL in nats per completion. Grey: a single "
        "reference, trained without the other, by the objective of this α."
    )
    return Table(header, rows, caption, frozenset(quiet))


def diversity_table(findings: Findings, plane: Plane) -> Table:
    """Train-test gap of the rule's own loss, and how many different answers the policy gives."""
    numbers = {"loss/train": "loss, training pairs", "loss/test": "loss, new pairs", "ranked/train": "ranked right, training"}
    numbers |= {"ranked/test": "ranked right, new", "entropy": "entropy, nats", "distinct": "distinct answers"}
    singles = [findings.trained(plane, "exact", end) for end in (0.0, 1.0)]
    have = [name for name in numbers if name in singles[0].runs[0]]
    header = ["trained under", "α", *(numbers[name] for name in have)]
    gaps = "loss/train" in have
    header += ["gap of the loss", "gap − the better single's, paired"] if gaps else []
    best = min((_gaps(single) for single in singles), key=sum) if gaps else []
    rows = []
    for at in [1.0, 0.0, *(weight for weight in findings.weights if 0 < weight < 1)]:
        for name, trained in _rows(findings, plane, at):
            if trained.weight != at:
                continue
            cells = [trained.measure(number).text() for number in have]
            if gaps:
                mine = _gaps(trained)
                cells += [Measure.of(mine).text(), "" if at in (0, 1) else paired(mine, best).text()]
            rows.append([name, f"{at:g}", *cells])
    caption = (
        "Loss: the rule's own, nats per pair; distinct: expected number among eight answers, or the share of different samples."
    )
    return Table(header, rows, caption)


def given_table(findings: Findings, task: str) -> Table:
    """Models that were not trained here."""
    found = findings.training.bench(task).untouched()
    names = [name for name in next(iter(found.values())) if not name.endswith("±")]
    rows = [
        [f"{model}, untouched", *(Measure(numbers[name], numbers.get(f"{name}±")).text() for name in names)]
        for model, numbers in found.items()
    ]
    return Table(["model", *names], rows, "Errors, where there are any, are over prompts.")


def sentences(findings: Findings, plane: Plane) -> list[str]:
    """What came out, one line a rule and weight; then what theory says of the best value."""
    lines = []
    for at in findings.weights:
        for name, trained in _rows(findings, plane, at):
            if trained.rule == "exact" and (trained.weight == at or at in (0, 1)):
                continue
            value, gain = (_said(trained.against_exact(number, at=at)) for number in ("J", "reward"))
            lines.append(f"α = {at:g}, {name}: J_α is {value}; reward is {gain}.")
    return lines + _convexity(findings, plane)


def answer(findings: Findings) -> str:
    """The whole sweep in one sentence: at how many weights and rules J differs from the exact rule's."""
    found = [
        trained.against_exact("J", at=at)
        for plane in findings.planes
        for at in findings.weights
        for _, trained in _rows(findings, plane, at)
        if not (trained.rule == "exact" and (trained.weight == at or at in (0, 1)))
    ]
    level, below = sum(each.within_noise for each in found), sum(not each.within_noise and each.mean < 0 for each in found)
    return (
        f"Of {len(found)} comparisons of another rule, or a single reference, with the exact rule at one α, J_α is lower in "
        f"{below}, higher in {len(found) - level - below} and not told apart in {level} "
        f"(paired t-tests at 5 % over {findings.settings.seeds} seeds)."
    )


def _convexity(findings: Findings, plane: Plane) -> list[str]:
    places = {weight: findings.best(plane, weight) for weight in (0.0, 0.25, 0.5, 0.75, 1.0)}
    best = ", ".join(f"{place.J:.3f} at α = {weight:g}" for weight, place in places.items() if place is not None)
    if not best:
        return []
    return [
        f"The best value J*_α itself: {best}. It is convex in α (theorem 5.1 of arXiv 2502.01203 and what follows from it), so "
        "on that number mixing cannot beat the better single reference: each α is another objective, and what can be "
        "compared is rules at one α."
    ]


def _rows(findings: Findings, plane: Plane, at: float) -> Iterator[tuple[str, Trained]]:
    """(name, runs) of everything measured at a weight: the rules inside, both single references everywhere."""
    names = findings.names(plane.task)
    for rule in findings.settings.chosen:
        if 0 < at < 1 or rule in OWN_ENDS:
            yield LABELS[rule] + ("" if 0 < at < 1 else ", one reference"), findings.trained(plane, rule, at)
    for end in (1.0, 0.0):
        yield alone(end, names), findings.trained(plane, "exact", end)


def _to_the_best(trained: Trained, at: float) -> list[str]:
    findings, plane = trained.findings, trained.plane
    missing, best, end = trained.missing(at=at), findings.best(plane, at), findings.end(plane, trained.rule, trained.weight)
    if missing is None or best is None or end is None:
        return []
    own = plane.beta * end.gap if trained.weight == at else best.J - (end.reward - plane.beta * end.price(at))
    return [Measure.of(missing).text(), Measure(own).text(), Measure.of(trained.missed(at=at)).text()]


def _gaps(trained: Trained) -> list[float]:
    return [test - train for test, train in zip(trained.values("loss/test"), trained.values("loss/train"), strict=True)]


def _said(found: Difference) -> str:
    if found.within_noise:
        word = "not told apart from the exact rule's"
    else:
        word = "lower than the exact rule's" if found.mean < 0 else "HIGHER than the exact rule's"
    return f"{word} ({found.text().removesuffix(' (within noise)')})"
