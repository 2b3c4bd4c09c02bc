"""`multiref sweep`: change the weights after training, by the merge that is exact for reverse KL."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from multiref.cli.options import REWARDS, Out, Seed, belong, by_name
from multiref.cli.voice import Made, say
from multiref.errors import ArgumentError

Reward = Annotated[
    list[str] | None, "--reward -r", f"Reported at every point: {REWARDS}, as an online run has. Repeatable; several add up."
]
Untrained = Annotated[bool, "--without-training", "π* ∝ ∏ π_k^{w_k} e^{r/β} itself, from draws of the references."]


def _settings(
    points: Annotated[
        int,
        typer.Option(
            min=2, help="How many weights of the first of two runs, from 0 to 1. Of more runs: the vertices and the middle."
        ),
    ] = 5,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Completions per prompt from each model. Default 8; 64 without training.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Only the first NUMBER prompts.")] = 32,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest completion, in tokens.")] = 128,
    seed: Seed = 0,
    name: Annotated[str | None, "--name", "Configuration of the prompts' data set."] = None,
    split: Annotated[str | None, "--split", "Split of the prompts' data set, or a part: 'train[:5%]'."] = None,
    without_training: Untrained = False,
) -> Any:
    from multiref.runs.sweeping import SweepSettings

    many = samples or (64 if without_training else 8)
    return SweepSettings(
        points=points, samples=many, limit=limit, max_new_tokens=max_new_tokens, seed=seed, name=name, split=split
    )


def _references(
    without_training: Untrained = False,
    reference: Annotated[list[str] | None, "--reference", "name=PATH, once per reference; --without-training only."] = None,
    beta: Annotated[list[float] | None, "Strengths of π*; repeatable, default 0.1; --without-training only."] = None,
    reward: Reward = None,
) -> tuple[dict[str, str], list[float]] | None:
    """References by name, and strengths; None where runs have them."""
    belong("--without-training", without_training, reference=reference, beta=beta)
    if not without_training:
        return None
    named = by_name("--reference", reference)
    if len(named) < 2:
        raise ArgumentError("--reference: expected at least two, such as --reference base=./base --reference math=./math.")
    belong("--reward", reward, beta=beta)
    return named, beta or [0.1]


def command(
    prompts: Annotated[str, "--prompts", "Prompts or pairs, as for score; sampled from."],
    out: Annotated[Path, Out, "A folder for sweep.json and the table."],
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="K run folders of `multiref train`, one reference each, same data, same β; with --without-training: runs to "
            "show beside, or none.",
            show_default=False,
        ),
    ] = None,
    *,
    settings: Annotated[Any, Made(_settings)],
    reward: Reward = None,
    untrained: Annotated[Any, Made(_references)],
) -> dict[str, Any]:
    """Change the weights after training. The optimum at weights w is the normalised geometric mean of the K single-reference
    optima; it is drawn here by importance weights.

    For each prompt, samples of all K policies are one pool of proposals; at weights w a sample weighs Π_k π_k^{w_k} over the
    mixture it was drawn from. Each point states its effective sample size, and with --reward E_π[r] with its standard error
    over prompts. Exact as far as the runs have converged; never a merge per token.

    With --without-training one set of draws of the references is scored once and re-weighted to π* at every --beta and weights;
    a point is grey where more than a tenth of the prompts have fewer than ten effective samples. Runs that are named are drawn
    beside, each at its own β and weights.

    Example: multiref sweep runs/base-alone runs/math-alone --prompts pairs.jsonl --out runs/sweep --reward
    lexicon=AFINN-en-165.txt

    Example: multiref sweep --without-training --reference a=./a --reference b=./b --beta 0.1 --beta 0.5 --prompts pairs.jsonl
    --reward lexicon=AFINN-en-165.txt --out runs/curve
    """
    from multiref.report import write_alone
    from multiref.runs.rewards import make_rewards, read_rewards
    from multiref.runs.sweeping import sweep, sweep_untrained
    from multiref.training.arguments import quiet

    quiet()
    rewards = make_rewards(read_rewards(reward or [], answers=False))
    with write_alone(out):
        if untrained is None:
            found = sweep(runs or [], prompts, out, settings, rewards=rewards, say=say)
        else:
            named, betas = untrained
            found = sweep_untrained(named, runs or [], prompts, out, settings, betas=betas, rewards=rewards, say=say)
    return {"output": str(out), "points": found, "next": f"open {shlex.quote(str(out / 'sweep.json'))}"}
