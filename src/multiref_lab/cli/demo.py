"""`multiref demo`: a world made from nothing, five rules, one yardstick, a page."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    quick: Annotated[bool, "--quick", "Fewer pairs: under a minute once the world is made, and noisier."] = False,
    output: Annotated[Path, "--out --output -o", "Folder for the report, figures and finished results."] = Path("demo"),
    cache: Annotated[Path | None, "Folder in which worlds are kept; by default in the user's cache."] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions: each draws its own prompts, answers, labels and order.")] = 3,
) -> dict[str, str]:
    """Make a small world and align a model in it under several rules, with everything exact.
    No network, no files from elsewhere.

    Interrupted, the same command goes on where it was; repeated, it reuses what is finished.

    Example: multiref demo --quick --output demo-quick
    """
    import dataclasses

    from multiref_lab.cli.narrator import Narrator
    from multiref_lab.demo import page, settings, tables
    from multiref_lab.demo.run import run

    chosen = dataclasses.replace(settings.QUICK if quick else settings.FULL, seeds=seeds)
    narrator = Narrator()
    findings = run(chosen, output, cache, narrator)
    narrator.phase("Writing the page and the figures.")
    report = page.write(findings, output, command="multiref demo" + (" --quick" if quick else ""))
    common, own = tables.common_table(findings), tables.own_table(findings)
    narrator.table(common, (1, 2, 3))
    narrator.table(common, (4, 5, 6, 7, 8, 9))
    narrator.table(own, (2, 3, 4, 5))
    narrator.table(tables.against_table(findings), (1, 2, 3, 4, 5, 6))
    for line in [tables.answer(findings), *page.limits(findings)]:
        narrator.line(line)
    return narrator.end(output, report)
