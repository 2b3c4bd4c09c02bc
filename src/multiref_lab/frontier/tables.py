"""Findings as rows of text, and what may be said about the differences."""

from __future__ import annotations

from collections.abc import Iterator

from multiref.report.noise import Difference, Measure
from multiref.report.page import Table
from multiref_lab.frontier.findings import Findings, Plane
from multiref_lab.frontier.grid import OWN_ENDS
from multiref_lab.frontier.rules import LABELS, label

__all__ = ["diversity_table", "given_table", "objective_table", "sentences"]


def objective_table(findings: Findings, plane: Plane) -> Table:
    """At each α every rule by the objective of that α, the single references among them."""
    one, two = findings.names(plane.task)
    exact = findings.exact_place(plane, 0.5) is not None
    header = [
        "trained under",
        "α",
        "J_α",
        "J_α − exact's, paired",
        "reward",
        "reward − exact's, paired",
        f"KL(π‖{one})",
        f"KL(π‖{two})",
    ]
    header += ["J*_α − J_α", "the same at the rule's own optimum", "reward missed at its own KL"] if exact else []
    rows: list[list[str]] = []
    quiet: set[int] = set()
    for alpha in findings.alphas:
        for name, rule, trained in _rows(findings, plane, alpha):
            if trained != alpha:
                quiet.add(len(rows))
            cells = [
                findings.measure(plane, rule, trained, "J", at=alpha).text(),
                _against(findings, plane, rule, trained, "J", alpha),
            ]
            cells += [
                findings.measure(plane, rule, trained, "reward").text(),
                _against(findings, plane, rule, trained, "reward", alpha),
            ]
            cells += [findings.measure(plane, rule, trained, f"kl/{ref}").text() for ref in (one, two)]
            rows.append([name, f"{alpha:g}", *cells, *_to_the_best(findings, plane, rule, trained, alpha)])
    caption = f"Means over {findings.settings.seeds} seeds ± one standard error; KL in nats per completion. Grey: a single reference, trained without the other, by the objective of this α."
    return Table(header, rows, caption, frozenset(quiet))


def diversity_table(findings: Findings, plane: Plane) -> Table:
    """Train-test gap of the rule's own loss, and how many different answers the policy gives."""
    numbers = {
        "loss/train": "loss, training pairs", "loss/test": "loss, new pairs", "ranked/train": "ranked right, training",
        "ranked/test": "ranked right, new", "entropy": "entropy, nats", "distinct": "distinct answers",
    }  # fmt: skip
    have = [name for name in numbers if name in findings.runs(plane, "exact", 1.0)[0].numbers]
    gaps = "loss/train" in have
    header = [
        "trained under",
        "α",
        *(numbers[name] for name in have),
        *(["gap of the loss", "gap − the better single's, paired"] if gaps else []),
    ]
    rows = []
    singles = {end: _gaps(findings, plane, "exact", end) for end in (0.0, 1.0)} if gaps else {}
    for alpha in [1.0, 0.0, *(a for a in findings.alphas if 0 < a < 1)]:
        for name, rule, trained in _rows(findings, plane, alpha):
            if trained != alpha:
                continue
            cells = [findings.measure(plane, rule, trained, number).text() for number in have]
            if gaps:
                mine = _gaps(findings, plane, rule, trained)
                best = min(singles.values(), key=lambda values: sum(values))
                against = "" if alpha in (0, 1) else Difference(*_paired(mine, best)).text()
                cells += [Measure.of(mine).text(), against]
            rows.append([name, f"{alpha:g}", *cells])
    return Table(
        header,
        rows,
        "Loss: the rule's own, nats per pair; distinct: expected number among eight answers, or the share of different samples.",
    )


def given_table(findings: Findings, task: str) -> Table:
    """Models that were not trained here."""
    found = findings.given(task)
    names = [name for name in next(iter(found.values())) if not name.endswith("±")]
    rows = [[model, *(Measure(numbers[n], numbers.get(f"{n}±")).text() for n in names)] for model, numbers in found.items()]
    return Table(["model", *names], rows, "Errors, where there are any, are over prompts.")


def sentences(findings: Findings, plane: Plane) -> list[str]:
    """What came out, one line a rule and α; then what theory says of the best value."""
    lines = []
    for alpha in findings.alphas:
        for name, rule, trained in _rows(findings, plane, alpha):
            if rule == "exact" and (trained == alpha or alpha in (0, 1)):
                continue
            value, gain = (findings.against_exact(plane, rule, trained, number, at=alpha) for number in ("J", "reward"))
            lines.append(
                f"α = {alpha:g}, {name}: J_α is {_word(value)} ({_size(value)}); reward is {_word(gain)} ({_size(gain)})."
            )
    return lines + _convexity(findings, plane)


def _convexity(findings: Findings, plane: Plane) -> list[str]:
    places = {alpha: findings.exact_place(plane, alpha) for alpha in (0.0, 0.25, 0.5, 0.75, 1.0)}
    if any(place is None for place in places.values()):
        return []
    best = ", ".join(f"{place.J:.3f} at α = {alpha:g}" for alpha, place in places.items() if place is not None)
    return [
        f"The best value J*_α itself: {best}. It is convex in α (theorem 5.1 of arXiv 2502.01203 and what follows from it), so on that number mixing "
        "cannot beat the better single reference: each α is another objective, and what can be compared is rules at one α."
    ]


def _rows(findings: Findings, plane: Plane, alpha: float) -> Iterator[tuple[str, str, float]]:
    """(name, rule, α it was trained at) of everything measured at α: the rules inside, both single references everywhere."""
    names = findings.names(plane.task)
    for rule in findings.settings.chosen:
        if 0 < alpha < 1 or rule in OWN_ENDS:
            yield LABELS[rule] + ("" if 0 < alpha < 1 else ", one reference"), rule, alpha
    for end in (1.0, 0.0):
        yield label("single", end, names), "exact", end


def _against(findings: Findings, plane: Plane, rule: str, trained: float, number: str, alpha: float) -> str:
    return "" if (rule, trained) == ("exact", alpha) else findings.against_exact(plane, rule, trained, number, at=alpha).text()


def _to_the_best(findings: Findings, plane: Plane, rule: str, trained: float, alpha: float) -> list[str]:
    best = findings.exact_place(plane, alpha)
    if best is None:
        return []
    missing = Measure.of([best.J - value for value in findings.values(plane, rule, trained, "J", at=alpha)]).text()
    end = findings.end(plane, rule, trained)
    assert end is not None
    value = end.reward - plane.beta * (alpha * end.kl[0] + (1 - alpha) * end.kl[1])
    own = Measure(plane.beta * end.gap if trained == alpha else best.J - value).text()
    return [missing, own, Measure.of(findings.missed(plane, rule, trained, at=alpha)).text()]


def _gaps(findings: Findings, plane: Plane, rule: str, alpha: float) -> list[float]:
    return [
        test - train
        for test, train in zip(
            findings.values(plane, rule, alpha, "loss/test"), findings.values(plane, rule, alpha, "loss/train"), strict=True
        )
    ]


def _paired(mine: list[float], other: list[float]) -> tuple[float, float | None, int]:
    measure = Measure.of([a - b for a, b in zip(mine, other, strict=True)])
    return measure.mean, measure.error, measure.n


def _size(found: Difference) -> str:
    return found.text().removesuffix(" (within noise)")


def _word(found: Difference) -> str:
    if found.within_noise:
        return "not told apart from the exact rule's"
    return "lower than the exact rule's" if found.mean < 0 else "HIGHER than the exact rule's"
