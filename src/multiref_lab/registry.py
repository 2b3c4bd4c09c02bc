"""Every claim, found by file; run one: measure, decide, say so."""

import difflib
import functools
import pkgutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from multiref.errors import ArgumentError
from multiref_lab import statements
from multiref_lab.claim import GROUPS, Claim, Effort, Measurement, Verdict
from multiref_lab.experiment import one_thread


@dataclass(frozen=True)
class Outcome:
    """A claim with its verdict; `seconds` is processor time."""

    claim: Claim
    verdict: Verdict
    measurement: Measurement
    full: bool
    seconds: float

    def __str__(self) -> str:
        lines = [
            f"{self.claim.name}: {self.verdict}",
            f"  {self.claim.statement}",
            f"  {self.claim.status}: {self.claim.source}",
        ]
        for check in self.measurement.checks:
            mark = "ok" if check.holds else "NO"
            lines.append(f"  {mark}  {check.what}: predicted {check.predicted}, measured {check.shown}")
        lines += [f"  {self.measurement.note}"] if self.measurement.note else []
        return "\n".join([*lines, f"  rule: {self.claim.rule.words}"])


@functools.cache
def claims() -> tuple[Claim, ...]:
    """Every claim of every file in `statements`: by group, by `order`, then as the files have them."""
    files = sorted(file.name for file in pkgutil.iter_modules(statements.__path__, f"{statements.__name__}."))
    found = [value for file in files for value in vars(import_module(file)).values() if isinstance(value, Claim)]
    return tuple(sorted(found, key=lambda claim: (GROUPS.index(claim.group), claim.order)))


def find(names: Sequence[str]) -> tuple[Claim, ...]:
    """The claims of these names, in the order of the ledger; all of them for no name.

    Raises:
        ArgumentError: a name that is no claim's, with the nearest ones.
    """
    known = {claim.name for claim in claims()}
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or sorted(known)[:3]
            raise ArgumentError(
                f"claim: found {name!r}, expected a name from `multiref verify --list`; the nearest are {', '.join(close)}"
            )
    return tuple(claim for claim in claims() if not names or claim.name in names)


def verify(name: str, full: bool = False) -> Outcome:
    """Measure one claim and decide it: quickly (a test), or in full (the ledger).

    Raises:
        ArgumentError: a name that is no claim's.
    """
    (claim,) = find([name])
    begin = time.process_time()
    with one_thread():
        measurement = claim.measure(Effort(full))
    return Outcome(claim, claim.rule(measurement), measurement, full, time.process_time() - begin)
