"""A claim as a value: what is said, where, what number it predicts, how that is measured, and by which rule it is decided."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Literal, TypeVar, get_args

from torch import Tensor

from multiref.errors import ArgumentError
from multiref.report import Estimate
from multiref.report.figures import Plot

Verdict = Literal["verified", "vacuous", "convention-dependent", "refuted", "not testable here"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
GROUPS = (
    "exact",
    "reverse KL",
    "forward KL",
    "several references",
    "MRPO",
    "stability",
    "figures of the stability paper",
    "bilevel",
    "preference games",
    "private labels",
    "sharp rates",
    "clipped KL",
    "conventions",
    "not testable here",
)
T = TypeVar("T")


@dataclass(frozen=True)
class Effort:
    """How much to spend. Quick is a test (well under a second a claim), full is the ledger; both use at least 20 seeds."""

    full: bool = False

    def choose(self, quick: T, full: T) -> T:
        """`full` in a full run, else `quick`."""
        return full if self.full else quick


@dataclass(frozen=True)
class Check:
    """One predicted number beside the measured one, and whether they agree."""

    what: str
    predicted: str
    measured: float | Estimate
    holds: bool

    @property
    def shown(self) -> str:
        """The measured number, with its interval where it has one."""
        return str(self.measured) if isinstance(self.measured, Estimate) else f"{self.measured:.4g}"


Findings = Iterable[Check | Plot | str]  # what a claim's function yields: its checks, at most one figure, and notes


@dataclass(frozen=True)
class Measurement:
    """What an experiment found."""

    checks: Sequence[Check]
    figure: Plot | None = None
    note: str = ""

    @classmethod
    def of(cls, findings: Findings) -> "Measurement":
        """Carry the experiment out: the checks in their order, the figure, the notes as one text."""
        found = list(findings)
        figure = next((each for each in found if isinstance(each, Plot)), None)
        note = " ".join(each for each in found if isinstance(each, str))
        return cls([each for each in found if isinstance(each, Check)], figure, note)


@dataclass(frozen=True)
class Rule:
    """How checks become a verdict. The words open with the verdict that is given if every check holds;
    if one fails the claim is refuted.

    Attributes:
        otherwise: what a failed check means, where that is not simply "refuted".

    Raises:
        ArgumentError: words that open with no verdict.
    """

    words: str
    otherwise: Callable[[Measurement], Verdict] = lambda measurement: "refuted"

    def __post_init__(self) -> None:
        if not self.words.startswith(VERDICTS):
            raise ArgumentError(f"rule: found {self.words!r}, expected words that open with one of {', '.join(VERDICTS)}")

    def __call__(self, measurement: Measurement) -> Verdict:
        if all(check.holds for check in measurement.checks):
            return next(verdict for verdict in VERDICTS if self.words.startswith(verdict))
        return self.otherwise(measurement)


all_hold = Rule("verified if every check holds")


@dataclass(frozen=True)
class Claim:
    """One statement, decided by one experiment.

    Attributes:
        status: `found` if a paper says it, `derived` if we do.
        source: where.
        predicted: the number or relation to be seen, in words.
        order: its place within the group; claims of one place stand as their files do.
    """

    name: str
    group: str
    statement: str
    status: str
    source: str
    predicted: str
    rule: Rule
    measure: Callable[[Effort], Measurement]
    order: int


def claim(
    name: str, *, group: str, statement: str, source: str, predicts: str, rule: Rule | str = all_hold, order: int = 0
) -> Callable[[Callable[[Effort], Findings]], Claim]:
    """Make the function below it the experiment that decides this claim; a file of `statements` needs nothing else.

    The function yields its checks, and where there are some a figure (`Plot`) and notes (text).

    Args:
        group: of `GROUPS`, the sections of the ledger.
        source: "FOUND, where" for what a paper says, "DERIVED, where" for what we do.
        rule: words alone open with the verdict that is given if every check holds.

    Raises:
        ArgumentError: a source that says neither, a group that the ledger does not have.
    """
    if group not in GROUPS:
        raise ArgumentError(f"group of {name}: found {group!r}, expected one of {', '.join(GROUPS)}")
    status, _, where = source.partition(", ")
    if status not in ("FOUND", "DERIVED"):
        raise ArgumentError(f"source of {name}: found {source!r}, expected 'FOUND, where' or 'DERIVED, where'")
    decided = rule if isinstance(rule, Rule) else Rule(rule)

    def made(experiment: Callable[[Effort], Findings]) -> Claim:
        measure = wraps(experiment)(lambda effort: Measurement.of(experiment(effort)))
        return Claim(name, group, statement, status.lower(), where, predicts, decided, measure, order)

    return made


def near(what: str, predicted: float, measured: float | Estimate, tolerance: float) -> Check:
    """Holds if the measured value is within `tolerance` of the predicted one."""
    value = measured.value if isinstance(measured, Estimate) else measured
    return Check(what, f"{predicted:.4g} ± {tolerance:.2g}", measured, abs(value - predicted) <= tolerance)


def at_most(what: str, limit: float, measured: float | Estimate) -> Check:
    """Holds if the measured value (the upper end of its interval) is at most `limit`."""
    value = measured.high if isinstance(measured, Estimate) else measured
    return Check(what, f"≤ {limit:.4g}", measured, value <= limit)


def all_within(what: str, limit: float, errors: Tensor) -> Check:
    """Holds if no entry is larger than `limit` in size."""
    return at_most(what, limit, float(errors.abs().max()))


def at_least(what: str, limit: float, measured: float | Estimate) -> Check:
    """Holds if the measured value (the lower end of its interval) is at least `limit`."""
    value = measured.low if isinstance(measured, Estimate) else measured
    return Check(what, f"≥ {limit:.4g}", measured, value >= limit)


def exactly(what: str, predicted: float, measured: float) -> Check:
    """Holds if the two are the same number: for counts."""
    return Check(what, f"{predicted:g}", measured, measured == predicted)
