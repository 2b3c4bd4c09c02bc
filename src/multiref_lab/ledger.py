"""The ledger: one JSON file that knows every verdict, and the page and figures made from it."""

import itertools
import json
import math
import textwrap
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import multiref
from multiref.errors import OutputError
from multiref.report import Estimate, write_whole
from multiref.report.figures import draw
from multiref_lab.claim import VERDICTS, Check
from multiref_lab.fingerprint import fingerprint
from multiref_lab.registry import Outcome, claims

Entry = Mapping[str, Any]  # what JSON holds of an outcome


class Ledger:
    """`claims.json`, `claims.md` and `figures/claims/` in one folder.

    Every recorded outcome is on disk before the next claim starts, so an interrupted run goes on where it stopped.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.path = self.folder / "claims.json"
        self.entries: dict[str, Entry] = _read(self.path)
        self.current = {claim.name: fingerprint(claim.measure.__module__) for claim in claims()}

    def has(self, name: str, *, full: bool) -> bool:
        """Whether this claim was decided by the present code, with at least this effort."""
        entry = self.entries.get(name)
        return entry is not None and entry["fingerprint"] == self.current[name] and entry["full"] >= full

    def record(self, outcome: Outcome) -> None:
        """Store an outcome and its figure, and write the ledger and the page anew.

        Raises:
            OutputError: the folder cannot be written.
        """
        name, figure = outcome.claim.name, outcome.measurement.figure
        picture = f"figures/claims/{name}.png" if figure else None
        if figure:
            draw(figure, self.folder / f"figures/claims/{name}.png", title=name)
        self.entries[name] = {**_entry(outcome), "figure": picture, "fingerprint": self.current[name]}
        self.write()

    def write(self) -> None:
        """Both files, claims in their order; last the one that says what is done, so that whoever is killed between them makes
        the page again."""
        ordered = {claim.name: self.entries[claim.name] for claim in claims() if claim.name in self.entries}
        stored = json.dumps({"version": multiref.__version__, "claims": ordered}, indent=1, ensure_ascii=False)
        write_whole(self.folder / "claims.md", _page(ordered, self.current))
        write_whole(self.path, stored + "\n")


def _read(path: Path) -> dict[str, Entry]:
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["claims"]
        return {name: dict(entry) for name, entry in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise OutputError(
            f"{path}: found a file that is no ledger, expected one written by `multiref verify`; move it away"
        ) from error


def _number(value: float) -> float | str:
    return float(value) if math.isfinite(value) else str(value)


def _check(check: Check) -> dict[str, Any]:
    found = check.measured
    interval = [_number(found.low), _number(found.high)] if isinstance(found, Estimate) else None
    value = _number(found.value if isinstance(found, Estimate) else found)
    shown = {"what": check.what, "predicted": check.predicted, "measured": value, "interval": interval, "shown": check.shown}
    return {**shown, "holds": bool(check.holds)}


def _entry(outcome: Outcome) -> dict[str, Any]:
    claim, figure = outcome.claim, outcome.measurement.figure
    return {
        **{name: getattr(claim, name) for name in ("group", "statement", "status", "source", "predicted")},
        "rule": claim.rule.words,
        "verdict": outcome.verdict,
        "checks": [_check(check) for check in outcome.measurement.checks],
        "slopes": {c.label: str(c.slope) for c in figure.curves if c.slope is not None} if figure else {},
        "note": outcome.measurement.note,
        "full": outcome.full,
        "seconds": round(outcome.seconds, 2),
    }


_LEGEND = (
    "- **verified**: measured as predicted, by the stated rule. **refuted**: not.",
    "- **vacuous**: true, and says nothing at any practical size. **convention-dependent**: true in one reading that the "
    "source allows, false in another.",
    "- **found** is what a paper says, **derived** what we prove; intervals are 95 % bootstrap over seeds, slopes are of the "
    "top decade.",
    "- Proofs of what is derived are in [theory](theory.md), what each bound says in [bounds](bounds.md).",
    "- A slope on random instances is evidence about those instances, not a minimax rate.",
)


def _page(entries: Mapping[str, Entry], current: Mapping[str, str]) -> str:
    """The ledger as Markdown: a list, then one section a claim."""
    tally = Counter(entry["verdict"] for entry in entries.values())
    full = all(entry["full"] for entry in entries.values())
    lines = [
        "# Claims ledger",
        "",
        "Written by `multiref verify`; do not edit. Every claim of the papers, and every one of ours, as an experiment with a "
        "verdict."
        + ("" if full else " Some entries come from the quick form (see each section): run `multiref verify --full`."),
        "",
        *_LEGEND,
        "",
        ", ".join(f"{tally[verdict]} {verdict}" for verdict in VERDICTS if tally[verdict]) + ".",
        "",
        *(
            f"- [{name}](#{name}), {e['status']}: **{e['verdict']}**. Predicted: {e['predicted']}."
            for name, e in entries.items()
        ),
    ]
    for group, members in itertools.groupby(entries, key=lambda name: str(entries[name]["group"])):
        lines += ["", f"## {group[0].upper()}{group[1:]}"]
        for name in members:
            lines += ["", *_section(name, entries[name], current[name])]
    return "\n".join(map(_wrap, lines)) + "\n"


def _section(name: str, entry: Entry, current: str) -> list[str]:
    effort = "full" if entry["full"] else "quick form"
    older = "" if entry["fingerprint"] == current else ", by an older version of the code"
    lines = [
        f"### {name}",
        "",
        f"**{entry['verdict']}** · {entry['statement']}",
        "",
        f"*{entry['status']}*: {entry['source']}. Rule: {entry['rule']}. "
        f"({effort}, {entry['seconds']:.1f} s of one core{older})",
    ]
    lines += [""] if entry["checks"] else []
    lines += [
        f"- {c['what']}: {c['shown']}, predicted {c['predicted']}: {'holds' if c['holds'] else '**fails**'}."
        for c in entry["checks"]
    ]
    lines += ["", entry["note"]] if entry["note"] else []
    lines += ["", f"![{name}]({entry['figure']})"] if entry["figure"] else []
    return lines


def _wrap(line: str) -> str:
    """A line of Markdown, or a list's entry, at no more than 128 characters a line; headings and links to figures are short."""
    later = "  " if line.startswith("- ") else ""
    return textwrap.fill(line, 128, subsequent_indent=later, break_long_words=False, break_on_hyphens=False)
