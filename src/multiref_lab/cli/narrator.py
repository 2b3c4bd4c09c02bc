"""What an experiment says on the terminal: sentences and tables; how far it is goes to the verb's bar."""

import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from multiref.cli import tell
from multiref.report import Table, print_table, visible


class Narrator:
    """A listener (`multiref_lab.experiment`)."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self.began = time.perf_counter()

    def phase(self, sentence: str) -> None:
        """What begins now, after the seconds gone by."""
        self.console.print(Text.assemble((f"{self._seconds():5.0f} s", "dim"), f"  {visible(sentence)}"))

    def progress(self, what: str, done: int, of: int) -> None:
        """A bar, one at a time."""
        tell(what, done, of)

    def _seconds(self) -> float:
        return time.perf_counter() - self.began

    def line(self, text: str) -> None:
        """A sentence alone."""
        self.console.print(Text(visible(text)))

    def end(self, output: Path, report: Path) -> dict[str, str]:
        """Where everything is: the verb's result."""
        self.line(f"Figures: {output / 'figures'}   ({self._seconds():.0f} s)")
        return {"output": str(output), "report": str(report), "next": f"open {shlex.quote(str(report))}"}

    def table(self, table: Table, columns: Sequence[int] | None = None) -> None:
        """A report's table, or some of its columns."""
        print_table(table, columns, self.console)
