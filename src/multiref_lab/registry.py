"""Run a claim: measure, decide, say so."""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from multiref.errors import ArgumentError
from multiref_lab.claim import Claim, Effort, Measurement, Verdict
from multiref_lab.statements import CLAIMS

__all__ = ["Outcome", "claims", "find", "verify"]


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
        return "\n".join([*lines, f"  rule: {self.claim.rule}"])


def claims() -> tuple[Claim, ...]:
    """Every claim, in the order of the ledger."""
    return CLAIMS


def find(names: Sequence[str]) -> tuple[Claim, ...]:
    """The claims of these names, in the order of the ledger; all of them for no name.

    Raises:
        ArgumentError: a name that is no claim's, with the nearest ones.
    """
    known = {claim.name for claim in CLAIMS}
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or sorted(known)[:3]
            raise ArgumentError(
                f"claim: found {name!r}, expected a name from `multiref verify --list`; the nearest are {', '.join(close)}"
            )
    return tuple(claim for claim in CLAIMS if not names or claim.name in names)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Many small arrays: more threads save little on an idle machine, and on a busy one they wait for each other for minutes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def verify(name: str, full: bool = False) -> Outcome:
    """Measure one claim and decide it: quickly (a test), or in full (the ledger).

    Raises:
        ArgumentError: a name that is no claim's.
    """
    (claim,) = find([name])
    begin = time.process_time()
    with _one_thread():
        measurement = claim.measure(Effort(full))
    return Outcome(claim, claim.decide(measurement), measurement, full, time.process_time() - begin)
