"""A table in the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from multiref.report.blocks import Table
from multiref.report.shown import visible

if TYPE_CHECKING:
    from rich.console import Console


WIDEST = 28  # characters of a cell, beyond which it is folded rather than moved


def print_table(table: Table, columns: Sequence[int] | None = None, console: Console | None = None) -> None:
    """Print a table, in several parts below one another where the terminal is too narrow for all columns; the first column
    names the rows of each part. The caption stands above; "~" stands for "(within noise)".

    Args:
        columns: the first one and these; None: all.
    """
    from rich.console import Console

    console = console or Console(highlight=False)
    rows = [[visible(cell.replace("(within noise)", "~")) for cell in row] for row in table.rows]
    header = [visible(cell) for cell in table.header]
    wanted = list(range(1, len(header))) if columns is None else list(columns)
    for number, part in enumerate(_parts(header, rows, wanted, console.width)):
        _print_part(table, header, rows, [0, *part], console, visible(table.caption) if not number else "")


def _parts(header: Sequence[str], rows: Sequence[Sequence[str]], wanted: Sequence[int], width: int) -> list[list[int]]:
    """Columns that fit beside the first one, from left to right."""

    def needs(column: int) -> int:
        return _width(header, rows, column) + 3

    parts: list[list[int]] = [[]]
    room = width - needs(0) - 1
    for column in wanted:
        if parts[-1] and sum(map(needs, parts[-1])) + needs(column) > room:
            parts.append([])
        parts[-1].append(column)
    return parts


def _width(header: Sequence[str], rows: Sequence[Sequence[str]], column: int) -> int:
    words = max(map(len, header[column].split()), default=0)  # a head is broken between words
    return min(max([words, *(len(row[column]) for row in rows)]), WIDEST)


def _print_part(
    table: Table, header: Sequence[str], rows: Sequence[Sequence[str]], kept: Sequence[int], console: Console, caption: str
) -> None:
    from rich.table import Table as Grid
    from rich.text import Text

    if caption:
        console.print(Text(caption, style="dim"))
    grid = Grid()
    for column in kept:
        room = _width(header, rows, column)
        head = Text("\n".join(textwrap.wrap(header[column], room, break_on_hyphens=False)))
        width, drawn = None if room == WIDEST else room, not (column and header[column])
        grid.add_column(head, justify="left" if drawn else "right", overflow="fold", width=width, min_width=room)
    for number, row in enumerate(rows):
        grid.add_row(*(Text(row[column]) for column in kept), style="dim" if number in table.quiet else None)
    console.print(grid)
