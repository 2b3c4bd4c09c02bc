"""`multiref frontier`: the published figure at small scale, from one file."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["command"]


def command(
    config: Annotated[
        Path, typer.Option("--config", "-c", help="A sweep such as recipes/figure1-small.yaml.", show_default=False)
    ],
    full: Annotated[
        bool, typer.Option("--full", help="The full grid: what the file's `full:` says, laid over the rest.")
    ] = False,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="key=value over the file, such as --set seeds=2. Repeatable.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for report.html, figures, results.json and finished runs; default runs/<name of the file>."),
    ] = None,
    shared: Annotated[
        Path | None,
        typer.Option(envvar="MULTIREF_SHARED", help="Folder of models and data that the task `stories` is relative to."),
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder in which worlds are kept; by default in the user's cache.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, one thread each.")] = 2,
) -> None:
    """Sweep the weight of one reference from 0 to 1 under several rules and seeds: reward, KL and objective, with errors, figures and a page.

    Interrupted, the same command goes on where it was, run by run; repeated, it reuses what is finished.

    Example: multiref frontier --config recipes/figure1-small.yaml
    """
    began = time.perf_counter()
    settings = _settings(config, full, change or [])
    output = output or Path("runs") / config.stem
    from multiref.training.arguments import quiet
    from multiref_lab.cli.narrator import Narrator
    from multiref_lab.frontier import page, tables
    from multiref_lab.frontier.execute import run

    quiet()
    words = ["multiref frontier", "--config", str(config), *(["--full"] if full else []), *(f"--set {c}" for c in change or [])]
    with Narrator() as narrator:
        findings = run(settings, output, narrator, cache=cache, shared=shared, workers=workers)
        narrator.phase("Writing the page and the figures.")
        report = page.write(findings, output, command=" ".join(words))
    for plane in findings.planes:
        table = tables.objective_table(findings, plane)
        narrator.line(f"{plane.task}, β = {plane.beta:g}" + (f", {plane.pairs:,} pairs" if plane.pairs else ""))
        narrator.table(table, (1, 2, 3))
        narrator.table(table, (1, 4, 5))
        for line in tables.sentences(findings, plane):
            narrator.line(line)
    narrator.line(f"Report: {report}   figures: {output / 'figures'}   ({time.perf_counter() - began:.0f} s)")


def _settings(config: Path, full: bool, changes: list[str]) -> Any:
    """The file, `full:` over it if asked, the changes over that. ConfigError names the key."""
    from multiref.errors import ConfigError
    from multiref.runs import Document
    from multiref_lab.frontier.settings import FrontierSettings

    document = Document.read(config)
    more = document.values.pop("full", None) or {}
    if not isinstance(more, dict):
        raise ConfigError(f"{config}: full: found {type(more).__name__}, expected keys and values.")
    if full and not more:
        raise ConfigError(f"{config}: --full was asked for, but the file has no `full:`.")
    if full:
        document.values = _over(document.values, more)
    return document.set(changes).validate(FrontierSettings)


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`, mapping by mapping."""
    found = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = _over(found[key], value) if both else value
    return found
