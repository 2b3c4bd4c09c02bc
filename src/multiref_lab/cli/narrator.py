"""What an experiment says on the terminal: sentences, progress bars, tables."""

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from multiref.report import Table, print_table, visible


class Rate(ProgressColumn):
    """How many a second, once two were done."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.3g}/s" if task.speed else "")


class Narrator:
    """A listener (`multiref_lab.experiment`): sentences and progress bars on the terminal;
    sentences alone where the output is no terminal."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        columns = (
            TextColumn("  {task.description:<28}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            Rate(),
            TimeRemainingColumn(),
        )
        self.bars = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        self.current: tuple[str, TaskID] | None = None
        self.began = time.perf_counter()

    def __enter__(self) -> "Narrator":
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def phase(self, sentence: str) -> None:
        """What begins now, after the seconds gone by."""
        self._clear()
        self.console.print(Text.assemble((f"{self._seconds():5.0f} s", "dim"), f"  {visible(sentence)}"))

    def progress(self, what: str, done: int, of: int) -> None:
        """A bar, one at a time."""
        if self.current is None or self.current[0] != what:
            self._clear()
            self.current = what, self.bars.add_task(what, total=of)
        self.bars.update(self.current[1], completed=done)

    def _seconds(self) -> float:
        return time.perf_counter() - self.began

    def _clear(self) -> None:
        if self.current is not None:
            self.bars.remove_task(self.current[1])
            self.current = None

    def line(self, text: str) -> None:
        """A sentence alone."""
        self.console.print(Text(visible(text)))

    def end(self, report: Path, figures: Path) -> None:
        """Where everything is."""
        self.line(f"Report: {report}   figures: {figures}   ({self._seconds():.0f} s)")

    def table(self, table: Table, columns: Sequence[int] | None = None) -> None:
        """A report's table, or some of its columns."""
        print_table(table, columns, self.console)
