"""`multiref sweep`: the whole curve over weights from K converged single-reference runs, by re-weighted samples. Reverse KL only."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    runs: Annotated[
        list[Path], typer.Argument(help="K run folders of `multiref train`, one reference each, same data, same β.")
    ],
    prompts: Annotated[Path, typer.Option("--prompts", help="A file of pairs; their prompts are sampled from.")],
    out: Annotated[Path, typer.Option("--out", help="A folder for sweep.json and the table.")],
    points: Annotated[
        int, typer.Option(help="Weights on the first run from 0 to 1 (for two runs); for more, vertices and the middle.")
    ] = 5,
    samples: Annotated[int, typer.Option(help="Completions per prompt from each run's policy.")] = 8,
    limit: Annotated[int, typer.Option(help="How many prompts.")] = 32,
    max_new_tokens: Annotated[int, typer.Option(help="Longest completion.")] = 128,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
) -> None:
    """The optimum at weights w is the normalised geometric mean of the K single-reference optima: drawn here by importance weights.

    For each prompt, samples of all K policies are one pool of proposals; at weights w a sample weighs Π_k π_k^{w_k} over the mixture it was drawn
    from. Each point states its effective sample size. Exact as far as the runs have converged; never a merge per token.
    """
    from multiref.cli.training_run.sweeping import sweep
    from multiref.training.arguments import quiet

    quiet()
    sweep(
        runs,
        prompts,
        out,
        points=points,
        samples=samples,
        limit=limit,
        max_new_tokens=max_new_tokens,
        seed=seed,
        say=lambda t: print(t, flush=True),
    )
