"""`multiref stability`: replace or leave out one example, train again, and see how far each RLHF variant moves."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    out: Annotated[Path, typer.Option(help="Folder for the records, the table and the figures.")] = Path("stability"),
    world: Annotated[
        list[str] | None,
        typer.Option(
            "--world",
            "-w",
            help="linear, features (needs --model, --reference and --prompts) or transformer; several times for several.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A model folder: whose frozen hidden states are the features, and the first reference.")
    ] = None,
    reference: Annotated[str | None, typer.Option(help="A second model folder: the second reference.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Texts for the prompts: .jsonl with `prompt` or `text` a line, or .txt.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Independent data sets of each cell; by default 20 (transformer: 8).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Where the random numbers begin.")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Two points an axis and few seeds: a look, in about a minute.")
    ] = False,
) -> None:
    """Measure stability by retraining: how far DPO, and a reward model with its Gibbs optimum, PPO or RLOO, move when one pair is exchanged.

    As functions of data, features, label noise and nonlinearity, under one and two references, with influence functions beside.
    One record a finished cell: the same command goes on where it was interrupted. The default takes minutes on two cores.

    Example: multiref stability --out runs/stability --model models/a --reference models/b --prompts stories.jsonl
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from multiref_lab.stability import Experiment, axes, write_page

    console = Console(highlight=False)
    worlds = world or (["linear", "features", "transformer"] if model else ["linear", "transformer"])
    chosen = axes(worlds, quick=quick, seeds=seeds, seed=seed)
    given, source = (None, "")
    if "features" in worlds:
        given, source = _given(
            console, out, model, reference, prompts, [axis for axis in chosen if axis.world == "features"], seed
        )
    experiment = Experiment(out, chosen, given=given, source=source)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=len(experiment.cells))

        def watch(cell, done: bool) -> None:
            bar.update(task, advance=int(done), description=cell.name)

        experiment.run(watch=watch)
    page = write_page(experiment, out)
    console.print(page.table(), markup=False)
    console.print(
        f"{len(experiment.cells)} cells, {page.seconds:.0f} s of measuring. Written: {page.path}, {page.json}, {out / 'figures'}",
        markup=False,
    )


def _given(console, out: Path, model, reference, prompts, chosen, seed: int):
    """The features world, made once and kept beside the records."""
    from multiref.errors import ArgumentError
    from multiref_lab.stability import kept_given, prompts_needed

    missing = [
        name for name, value in (("--model", model), ("--reference", reference), ("--prompts", prompts)) if value is None
    ]
    if missing:
        raise ArgumentError(
            f"world features: found no {', '.join(missing)}; expected two model folders and a file of texts, or --world linear"
        )
    with console.status("Completions, hidden states and log-probabilities of the two models"):
        return kept_given(out, model, reference, prompts, prompts_needed(chosen), seed=seed)
