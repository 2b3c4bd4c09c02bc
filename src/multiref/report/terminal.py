"""A table in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from multiref.report.blocks import Table
from multiref.report.shown import visible

if TYPE_CHECKING:
    from rich.console import Console


def print_table(table: Table, columns: Sequence[int] | None = None, console: Console | None = None) -> None:
    """Print a table as wide as the terminal allows; its caption stands above it, numbers stand to the right, and "~" stands
    for "(within noise)".

    Args:
        columns: the first one and these, so that a wide table fits; None: all.
    """
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    kept = range(len(table.header)) if columns is None else (0, *columns)
    grid = Grid(title=Text(visible(table.caption)) if table.caption else None, title_justify="left", title_style="dim")
    for column in kept:
        names = columns is not None and not column
        grid.add_column(Text(visible(table.header[column])), justify="right" if column else "left", no_wrap=names)
    for number, row in enumerate(table.rows):
        cells = (Text(visible(row[column].replace("(within noise)", "~"))) for column in kept)
        grid.add_row(*cells, style="dim" if number in table.quiet else None)
    (console or Console(highlight=False)).print(grid)
