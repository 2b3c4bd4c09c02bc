"""`multiref verify`: the claims of the papers, each with a verdict."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multiref.cli import tell
from multiref.errors import ArgumentError

if TYPE_CHECKING:
    from rich.text import Text

_COLOURS = {"verified": "green", "refuted": "red", "vacuous": "yellow", "convention-dependent": "yellow"}


def command(
    names: Annotated[list[str] | None, typer.Argument(help="Claims to run; all of them if none is named.")] = None,
    full: Annotated[bool, "--full", "Spend minutes instead of seconds: the numbers of the ledger."] = False,
    out: Annotated[Path, "--out --output -o", "Folder for claims.md, claims.json and figures/claims/."] = Path("docs"),
    again: Annotated[bool, "--again", "Run also what the ledger already holds for this code and effort."] = False,
    show: Annotated[bool, "--list", "List the claims and stop."] = False,
) -> dict[str, Any]:
    """Run the claims of the papers as experiments, print predicted against measured, and write the ledger.

    An interrupted run goes on where it stopped. A refuted claim is a result, not an error: the exit code is 0.

    Example: multiref verify merge-identity --out runs/claims
    """
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    import multiref_lab as lab

    console = Console(highlight=False)
    chosen = lab.find(names or [])
    if show:
        if full or again:
            raise ArgumentError("--full, --again: expected without --list, which runs nothing.")
        for claim in chosen:
            console.print(Text.assemble((claim.name, "bold"), f" ({claim.status}): {claim.statement}"))
        return {"claims": {each.name: {"status": each.status, "statement": each.statement} for each in chosen}}
    ledger = lab.Ledger(out)
    for i, claim in enumerate(chosen, 1):
        tell("claims", i - 1, len(chosen))
        place = f"({i}/{len(chosen)})"
        if not again and ledger.has(claim.name, full=full):
            console.print(f"{place} {claim.name}: in the ledger", style="dim", markup=False)
            continue
        outcome = lab.verify(claim.name, full=full)
        ledger.record(outcome)
        console.print(
            Text.assemble(f"{place} ", (claim.name, "bold"), ": ", _coloured(outcome.verdict), f", {outcome.seconds:.1f} s")
        )
        for check in outcome.measurement.checks:
            line = f"      {check.what}: predicted {check.predicted}, measured {check.shown}"
            console.print(line, style="" if check.holds else "red", markup=False)
    tell("claims", len(chosen), len(chosen))
    headings = [Column(each, no_wrap=each != "predicted", overflow="fold") for each in ("claim", "who", "predicted", "verdict")]
    table = Table(*headings)
    for claim in chosen:
        table.add_row(claim.name, claim.status, Text(claim.predicted), _coloured(ledger.entries[claim.name]["verdict"]))
    console.print(table)
    verdicts = {each.name: ledger.entries[each.name]["verdict"] for each in chosen}
    return {"claims": verdicts, "ledger": str(ledger.path), "next": f"open {shlex.quote(str(ledger.folder / 'claims.md'))}"}


def _coloured(verdict: str) -> "Text":
    from rich.text import Text

    return Text(verdict, style=_COLOURS.get(verdict, ""))
