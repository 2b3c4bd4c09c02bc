"""A table in the terminal."""

from multiref.report.page import Table


def print_table(table: Table) -> None:
    """Print a table as wide as the terminal allows; its caption stands above it, numbers stand to the right."""
    from rich.console import Console
    from rich.table import Column
    from rich.table import Table as Grid

    first, *others = table.header
    columns = [Column(first), *(Column(name, justify="right") for name in others)]
    grid = Grid(*columns, title=table.caption or None, title_justify="left")
    for row in table.rows:
        grid.add_row(*row)
    Console(markup=False).print(grid)
