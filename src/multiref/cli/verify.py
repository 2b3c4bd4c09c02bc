"""`multiref verify`: the claims of the papers, each with a verdict."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    names: Annotated[list[str] | None, typer.Argument(help="Claims to run; all of them if none is named.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Spend minutes instead of seconds: the numbers of the ledger.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for claims.md, claims.json and figures/claims/.")] = Path("docs"),
    again: Annotated[
        bool, typer.Option("--again", help="Run also what the ledger already holds for this code and effort.")
    ] = False,
    show: Annotated[bool, typer.Option("--list", help="List the claims and stop.")] = False,
) -> None:
    """Run the claims of the papers as experiments, print predicted against measured, and write the ledger.

    An interrupted run goes on where it stopped. A refuted claim is a result, not an error: the exit code is 0.
    """
    from rich.console import Console

    from multiref import lab

    console = Console()
    chosen = lab.find(names or [])
    if show:
        for claim in chosen:
            console.print(f"[bold]{claim.name}[/bold] ({claim.status}): {claim.statement}", highlight=False)
        return
    ledger = lab.Ledger(out)
    for i, claim in enumerate(chosen, 1):
        if not again and ledger.has(claim.name, full=full):
            console.print(f"[{i}/{len(chosen)}] {claim.name}: in the ledger", style="dim", highlight=False, markup=False)
            continue
        with console.status(f"[{i}/{len(chosen)}] {claim.name}".replace("[", r"\[")):
            outcome = lab.verify(claim.name, full=full)
        ledger.record(outcome)
        line = f"[{i}/{len(chosen)}] {claim.name}: {outcome.verdict} ({outcome.seconds:.1f} s)"
        console.print(line, highlight=False, markup=False)
    console.print(_table(ledger, [claim.name for claim in chosen]))
    console.print(f"Ledger: {ledger.folder / 'claims.md'}, {ledger.path}", highlight=False, markup=False)


def _table(ledger, names: list[str]):
    from rich.table import Table

    table = Table("claim", "who", "predicted", "measured", "verdict", show_lines=False)
    for name in names:
        entry = ledger.entries[name]
        first = next((c for c in entry["checks"] if not c["holds"]), entry["checks"][0] if entry["checks"] else None)
        measured = "" if first is None else f"{first['what']}: {first['shown']}"
        table.add_row(name, entry["status"], entry["predicted"], measured, entry["verdict"])
    return table
