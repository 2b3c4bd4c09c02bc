"""`multiref data`: what a data set of preferences is: format, rows, lengths, duplicates, bad rows."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from multiref.cli.options import ChosenAnyRows, Data, options_of


def command(
    data: Data,
    chosen: ChosenAnyRows,
    model: Annotated[str | None, "--model -m", "A model folder or hub id: show rows and lengths as it sees them."] = None,
    against: Annotated[
        str | None, typer.Option(help="Another split: how many prompts are on both sides?", metavar="SPLIT")
    ] = None,
    html: Annotated[Path | None, "Write a page."] = None,
) -> dict[str, Any]:
    """Look at preference pairs: which format was recognised, how many rows, three of them as a model will see them, lengths,
    duplicates, and rows that cannot be used.

    Example: multiref data pairs.jsonl --model ./base
    """
    from dataclasses import replace

    from multiref.report import print_table, visible, write_page
    from multiref.runs.data_look import look_at_data, shown_lines

    chosen = replace(chosen, bad_rows="skip")
    look = look_at_data(data, chosen, model=model, other=replace(chosen, split=against) if against else None)
    counts, *lengths = look.tables()
    print_table(counts)
    print("\n".join(map(visible, shown_lines(look))))
    for table in lengths:
        print_table(table)
    for reason in [*list(look.bad.values())[:3], *look.notes]:
        print(visible(reason))
    if html is not None:
        write_page(html, f"What {Path(data).name} is", *look.blocks(), subtitle=look.format)
        print(f"Page: {html}")
    given = options_of(chosen if look.bad else replace(chosen, bad_rows="refuse"))
    return {**look.as_dict(), "next": f"multiref score {shlex.quote(data)}{given} --reference NAME=MODEL --store scores/"}
