"""`multiref demo`: a world made from nothing, five rules, one yardstick, a page."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["command"]


def command(
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer pairs: under a minute once the world is made, and noisier.")
    ] = False,
    output: Annotated[Path, typer.Option(help="Folder for the report, figures and finished results.")] = Path("demo"),
    cache: Annotated[Path | None, typer.Option(help="Folder in which worlds are kept; by default in the user's cache.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions: each draws its own prompts, answers, labels and order.")] = 3,
) -> None:
    """Make a small world and align a model in it under several rules, with everything exact. No network, no files from elsewhere.

    Interrupted, the same command goes on where it was; repeated, it reuses what is finished.

    Example: multiref demo --quick --output demo-quick
    """
    began = time.perf_counter()
    import dataclasses

    from multiref_lab.demo import page, tables
    from multiref_lab.demo.run import run
    from multiref_lab.demo.settings import FULL, QUICK

    settings = dataclasses.replace(QUICK if quick else FULL, seeds=seeds)
    with Narrator() as narrator:
        findings = run(settings, output, cache, narrator)
        narrator.phase("Writing the page and the figures.")
        report = page.write(findings, output, command="multiref demo" + (" --quick" if quick else ""))
    common, own = tables.common_table(findings), tables.own_table(findings)
    narrator.table(common, (1, 2, 3))
    narrator.table(common, (4, 5, 6, 7, 8, 9))
    narrator.table(own, (2, 3, 4, 5))
    for line in [*tables.verdicts(findings), *page.limits(findings)]:
        narrator.line(line)
    narrator.line(f"Report: {report}   figures: {output / 'figures'}   ({time.perf_counter() - began:.0f} s)")


class Narrator:
    """Sentences and progress bars on the terminal; sentences alone where the output is no terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console()
        columns = (TextColumn("  {task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bars = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        self.current: tuple[str, Any] | None = None
        self.began = time.perf_counter()

    def __enter__(self) -> "Narrator":
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def phase(self, sentence: str) -> None:
        from rich.markup import escape

        self._clear()
        self.console.print(f"[dim]{time.perf_counter() - self.began:5.0f} s[/dim]  {escape(sentence)}")

    def progress(self, what: str, done: int, of: int) -> None:
        if self.current is None or self.current[0] != what:
            self._clear()
            self.current = what, self.bars.add_task(what, total=of)
        self.bars.update(self.current[1], completed=done)

    def _clear(self) -> None:
        if self.current is not None:
            self.bars.remove_task(self.current[1])
            self.current = None

    def line(self, text: str) -> None:
        from rich.markup import escape

        self.console.print(escape(text))

    def table(self, table: Any, columns: tuple[int, ...]) -> None:
        """Some columns of a report's table, so that it fits a terminal; "~" stands for "(within noise)"."""
        from rich.markup import escape
        from rich.table import Table

        shown = Table(title=table.caption, title_justify="left", title_style="dim")
        for column in (0, *columns):
            shown.add_column(escape(table.header[column]), justify="right" if column else "left", no_wrap=not column)
        for number, row in enumerate(table.rows):
            cells = (escape(row[column].replace("(within noise)", "~")) for column in (0, *columns))
            shown.add_row(*cells, style="dim" if number in table.quiet else None)
        self.console.print(shown)
