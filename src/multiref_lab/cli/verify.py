"""`multiref verify`: the claims of the papers, each with a verdict."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command"]

_COLOURS = {"verified": "green", "refuted": "red", "vacuous": "yellow", "convention-dependent": "yellow"}


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

    import multiref_lab as lab

    console = Console(highlight=False)
    chosen = lab.find(names or [])
    if show:
        for claim in chosen:
            console.print(f"[bold]{claim.name}[/bold] ({claim.status}): {claim.statement}")
        return
    ledger = lab.Ledger(out)
    for i, claim in enumerate(chosen, 1):
        if not again and ledger.has(claim.name, full=full):
            console.print(f"({i}/{len(chosen)}) {claim.name}: in the ledger", style="dim")
            continue
        with console.status(f"({i}/{len(chosen)}) {claim.name}"):
            outcome = lab.verify(claim.name, full=full)
        ledger.record(outcome)
        console.print(f"({i}/{len(chosen)}) [bold]{claim.name}[/bold]: {_coloured(outcome.verdict)}, {outcome.seconds:.1f} s")
        for check in outcome.measurement.checks:
            console.print(
                f"      {check.what}: predicted {check.predicted}, measured {check.shown}",
                style="" if check.holds else "red",
                markup=False,
            )
    _summary(console, ledger, [claim.name for claim in chosen])


def _coloured(verdict: str) -> str:
    colour = _COLOURS.get(verdict)
    return f"[{colour}]{verdict}[/{colour}]" if colour else verdict


def _summary(console, ledger, names: list[str]) -> None:
    from rich.table import Table

    table = Table()
    for heading in ("claim", "who", "predicted", "verdict"):
        table.add_column(heading, no_wrap=heading != "predicted", overflow="fold")
    for name in names:
        entry = ledger.entries[name]
        table.add_row(name, entry["status"], entry["predicted"], _coloured(entry["verdict"]))
    console.print(table)
    console.print(f"Ledger: {ledger.folder / 'claims.md'}, {ledger.path}", markup=False)
