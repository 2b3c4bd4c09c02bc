"""`multiref sweep`: the whole curve over weights from K converged single-reference runs, by re-weighted samples.
Reverse KL only."""

from pathlib import Path
from typing import Annotated, Any

import typer

from multiref.cli.options import Seed


def command(
    runs: Annotated[
        list[Path], typer.Argument(help="K run folders of `multiref train`, one reference each, same data, same β.")
    ],
    prompts: Annotated[str, typer.Option("--prompts", help="Prompts or pairs, as for score; sampled from.")],
    out: Annotated[Path, typer.Option("--out", help="A folder for sweep.json and the table.")],
    points: Annotated[
        int, typer.Option(min=2, help="Weights on the first run from 0 to 1 (for two runs); for more, vertices and the middle.")
    ] = 5,
    samples: Annotated[int, typer.Option(min=1, help="Completions per prompt from each run's policy.")] = 8,
    limit: Annotated[int, typer.Option(min=1, help="How many prompts.")] = 32,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest completion.")] = 128,
    seed: Seed = 0,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            "--reward",
            "-r",
            help="A reward to report at every point: lexicon=FILE, model=FOLDER (a reward model), length=WORDS, "
            "or a YAML file with "
            "`rewards:` as an online run has. Repeatable; several add up.",
        ),
    ] = None,
) -> dict[str, Any]:
    """The optimum at weights w is the normalised geometric mean of the K single-reference optima:
    drawn here by importance weights.

    For each prompt, samples of all K policies are one pool of proposals; at weights w a sample weighs Π_k π_k^{w_k} over the
    mixture it was drawn from. Each point states its effective sample size, and with --reward E_π[r] with its standard error
    over prompts. Exact as far as the runs have converged; never a merge per token.

    Example: multiref sweep runs/base-alone runs/math-alone --prompts pairs.jsonl --out runs/sweep --reward
    lexicon=AFINN-en-165.txt
    """
    from multiref.runs.rewards import make_rewards, read_rewards
    from multiref.runs.sweeping import SweepSettings, sweep
    from multiref.training.arguments import quiet

    quiet()
    settings = SweepSettings(points=points, samples=samples, limit=limit, max_new_tokens=max_new_tokens, seed=seed)
    rewards = make_rewards(read_rewards(reward or [], answers=False))
    points_found = sweep(runs, prompts, out, settings, rewards=rewards, say=lambda text: print(text, flush=True))
    return {"output": str(out), "points": points_found}
