"""`multiref frontier`: the published figure at small scale, from one file."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multiref.errors import ArgumentError

if TYPE_CHECKING:
    from multiref_lab.frontier import FrontierSettings

SHARED = "MULTIREF_SHARED"


def command(
    config: Annotated[Path, "--config -c", "A sweep such as recipes/figure1-small.yaml."],
    full: Annotated[bool, "--full", "The full grid: what the file's `full:` says, laid over the rest."] = False,
    change: Annotated[list[str] | None, "--set", "key=value over the file, such as --set seeds=2. Repeatable."] = None,
    output: Annotated[
        Path | None,
        "--out --output -o",
        "Folder for report.html, figures, results.json and finished runs; default runs/<name of the file>.",
    ] = None,
    shared: Annotated[
        Path | None,
        typer.Option(envvar=SHARED, help="Folder of models and data that the task `stories` is relative to."),
    ] = None,
    cache: Annotated[Path | None, "Folder in which worlds are kept; by default in the user's cache."] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, one thread each.")] = 2,
) -> dict[str, str]:
    """Sweep the weight of one reference from 0 to 1 under several rules and seeds: reward, KL and objective, with errors,
    figures and a page.

    Interrupted, the same command goes on where it was, run by run; repeated, it reuses what is finished.

    Example: multiref frontier --config recipes/figure1-small.yaml
    """
    settings = read_settings(config, full, change or [])
    elsewhere = settings.stories or os.environ.get(SHARED)  # what the environment names for every sweep is no mistake
    idle = {"--cache": cache and not settings.generated, "--shared": shared and not elsewhere}
    if unread := ", ".join(option for option, is_idle in idle.items() if is_idle):
        raise ArgumentError(f"{unread}: no task of {config} reads it. Leave {unread} out.")
    output = output or Path("runs") / config.stem
    from multiref_lab.cli.narrator import Narrator
    from multiref_lab.frontier import Findings, Training, sweep, write
    from multiref_lab.frontier.tables import objective_table, sentences

    words = ["multiref frontier", "--config", str(config), *(["--full"] if full else []), *(f"--set {c}" for c in change or [])]
    training = Training(settings, cache, shared)
    narrator = Narrator()
    findings = Findings(training, sweep(training, output, narrator, workers=workers))
    narrator.phase("Writing the page and the figures.")
    report = write(findings, output, command=" ".join(words))
    for plane in findings.planes:
        table = objective_table(findings, plane)
        narrator.line(plane.title)
        narrator.table(table, (1, 2, 3))
        narrator.table(table, (1, 4, 5))
        for line in sentences(findings, plane):
            narrator.line(line)
    return narrator.end(output, report)


def read_settings(config: Path, full: bool, changes: list[str]) -> "FrontierSettings":
    """The file, `full:` over it if asked, the changes over that. ConfigError names the key and its line."""
    from multiref.errors import ConfigError
    from multiref.runs import Document
    from multiref_lab.frontier import FrontierSettings

    document = Document.read(config)
    more = document.values.pop("full", None) or {}
    if not isinstance(more, dict):
        raise ConfigError(f"{config}: full: found {type(more).__name__}, expected keys and values.")
    if full and not more:
        raise ConfigError(f"{config}: --full was asked for, but the file has no `full:`.")
    if full:
        document.values = _over(document.values, more)
    return document.set(changes).validate(FrontierSettings)


def _over(below: Any, above: Any) -> Any:
    """`above` laid over `below`, mapping by mapping."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return below | {key: _over(below.get(key), value) for key, value in above.items()}
