"""The race of online algorithms: `python -m multiref_lab.races --out race` runs it, prints its tables and draws its figures."""

import itertools
from pathlib import Path
from typing import Annotated

import typer

from multiref_lab.cli.narrator import Narrator
from multiref_lab.races.figures import draw_all, summary
from multiref_lab.races.race import AUDIT, CONTESTANTS, Start, race
from multiref_lab.toys import Size


def main(
    out: Annotated[Path, typer.Option(help="Folder of records and figures.")] = Path("race"),
    seeds: int = 5,
    labels: int = 10_000,
    work: Annotated[int, typer.Option(help="Policy steps in all.")] = 2_000,
    features: Annotated[int, typer.Option(help="Features that the reward is linear in.")] = 32,
    width: Annotated[int, typer.Option(help="Of every transformer: policies, references, reward model.")] = 64,
    beta: Annotated[list[float], typer.Option(help="Once for each.")] = [0.5],  # noqa: B006
    seen: Annotated[list[int] | None, typer.Option(help="Features that the reward model has; default: all.")] = None,
    world: Annotated[list[int], typer.Option(help="Rates were chosen on world 0.")] = [3],  # noqa: B006
    audit: Annotated[bool, typer.Option("--audit", help="Only the four upper objectives.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="Names of methods, as the race prints them.")] = None,
    workers: int = 1,
) -> None:
    """For each setting and method, the gap over labels as a share of the first. An interrupted race goes on where it was."""
    names = [entry.name for entry in (AUDIT if audit else CONTESTANTS) if not only or entry.name in only]
    sizes = [Size(width=width, dimension=features, seen=each) for each in seen or [features]]
    settings = itertools.product(world, sizes, beta, names)
    starts = [Start(name, number, strength, size, seeds, labels, work) for number, size, strength, name in settings]
    records = race(out / "records", starts).run(Narrator(), workers=workers, what="races")
    for setting in dict.fromkeys(start.setting for start in starts):
        methods = {start.contestant: record.found for start, record in records.items() if start.setting == setting}
        print(setting, *summary(methods), *draw_all(methods, out / "figures" / setting), sep="\n")


if __name__ == "__main__":
    typer.run(main)
