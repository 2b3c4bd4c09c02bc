"""`multiref evaluate`: compare policies under one yardstick, with intervals."""

import os
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from multiref.cli.options import REWARDS, Out, Seed, TakeOver, belong, by_name, weights_of
from multiref.cli.voice import Made, say
from multiref.errors import ConfigError

Values = dict[str, Any]  # of a run's file


def _policies(
    policy: Annotated[list[str], "--policy -p", "name=PATH, once per policy; differences are against the first."],
) -> Values:
    named = by_name("--policy", policy)
    if wrong := [name for name in named if "/" in name]:
        raise ConfigError(f"--policy {wrong[0]}=…: expected a name without /, for it names a file of samples.")
    return {"policies": named}


def _prompts(
    problems: Annotated[
        str | None, "GSM8K-style problems: .jsonl with question and answer, or a hub id. Their reward says right or wrong."
    ] = None,
    prompts: Annotated[str | None, "Prompts instead: rows, pairs, or a .txt with an empty line between texts."] = None,
    words: Annotated[int | None, "Only the first NUMBER words of each prompt."] = None,
    reward: Annotated[
        list[str] | None,
        "--reward -r",
        f"gsm8k, {REWARDS}. Repeatable; default gsm8k for --problems.",
    ] = None,
    style: Annotated[
        str | None, "How problems are written: chat (a conversation that asks for <answer>; the default) or plain."
    ] = None,
    name: Annotated[str | None, "--name", "Configuration of a data set that has several."] = None,
    split: Annotated[str | None, "Split, or a part: 'train[:5%]'. Default test for --problems of the hub."] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first NUMBER prompts.")] = None,
) -> Values:
    from multiref.runs.rewards import read_rewards

    if (problems is None) == (prompts is None):
        raise ConfigError("--problems, --prompts: expected one of the two.")
    belong("--prompts", prompts, words=words)
    belong("--problems", problems, style=style)
    if problems is None and not reward:
        raise ConfigError("--reward: expected at least one with --prompts: lexicon=FILE, length=WORDS or model=FOLDER.")
    default = None if os.path.isfile(os.path.expanduser(problems or "")) else "test"
    source: Values = {"path": problems, "kind": "gsm8k", "style": style or "chat", "split": split or default}
    if problems is None:
        source = {"path": prompts, "words": words, "split": split}
    rewards = read_rewards(reward or ["gsm8k"], answers=problems is not None)
    return {"prompts": {"name": name, "limit": limit, **source}, "rewards": [each.model_dump() for each in rewards]}


def _sampling(
    samples: Annotated[int, typer.Option(min=1, help="Completions of each prompt, under every policy.")] = 8,
    k: Annotated[list[int] | None, "--k", "pass@k, k at most --samples. Repeatable; default 1."] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="1: the policy itself. 0: its likeliest tokens.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest completion, in tokens.")] = 256,
    batch: Annotated[int, typer.Option(min=1, help="Prompts side by side; a killed call loses at most these.")] = 8,
    resamples: Annotated[int, typer.Option(min=100, help="Resamples of prompts, for intervals.")] = 2000,
    seed: Seed = 0,
    dtype: Annotated[str, "float32, bfloat16, float16."] = "float32",
) -> Values:
    return {name: value for name, value in locals().items() if value is not None}


def _compared(
    reference: Annotated[
        list[str] | None, "--reference", "name=PATH: also KL to it, J, win rates, diversity. Repeatable."
    ] = None,
    weight: Annotated[list[str] | None, "--weight -w", "name=NUMBER, of each reference; default equal ones."] = None,
    beta: Annotated[float | None, "Strength of the regularizer, for J; with --reference."] = None,
    beside: Annotated[list[str] | None, "references, token-pool, best-of-N or optimum: compared too. Repeatable."] = None,
) -> Values:
    """References, weights, β and who stands beside; nothing where none is named."""
    belong("--reference", reference, weight=weight, beta=beta, beside=beside)
    named = by_name("--reference", reference)
    found = {"references": named, "weights": weights_of(list(named), weight), "beta": beta, "beside": beside or []}
    return found if named else {}


def command(
    policies: Annotated[Values, Made(_policies)],
    out: Annotated[Path, Out, "Folder of report.html, evaluation.json, samples; resumed where it exists."],
    prompts: Annotated[Values, Made(_prompts)],
    sampling: Annotated[Values, Made(_sampling)],
    compared: Annotated[Values, Made(_compared)],
    device: Annotated[str | None, "cpu, cuda, …; default a GPU if there is one."] = None,
    take_over: TakeOver = False,
) -> dict[str, Any]:
    """Evaluate policies on the same prompts: pass@k (unbiased) and mean rewards, 95 % intervals by bootstrap over prompts,
    paired differences. With --reference and --beta also J, KL to each reference, win rate, length and diversity.

    Example: multiref evaluate -p base=./base -p trained=runs/gsm8k/model --problems test.jsonl --k 1 --k 4 --out runs/eval
    """
    from multiref.report import print_table
    from multiref.runs.document import Document
    from multiref.runs.evaluating import EvaluationSettings
    from multiref.runs.evaluating import evaluate as carry_out
    from multiref.runs.evaluation_page import figures_table
    from multiref.training.arguments import quiet

    quiet()
    document = Document({**policies, **prompts, **sampling, **compared}, "multiref evaluate")
    settings = document.validate(EvaluationSettings)
    found = carry_out(settings, out, device=device, say=say, take_over=take_over)
    for figures in filter(None, (found["policies"], found["differences"])):
        print_table(figures_table(figures))
    scope = "{prompts} prompts × {samples} samples at temperature {temperature:g}, at most {max_new_tokens} tokens, seed {seed}"
    strength = "; J at β {beta:g} and weights {weights}" if compared else ""
    say(f"{scope}; 95 % intervals by {{resamples}} resamples of the prompts{strength}".format_map(found["settings"]))
    return {"output": str(out), "summary": found, "next": f"open {shlex.quote(str(out / 'report.html'))}"}
