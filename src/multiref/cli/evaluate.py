"""`multiref evaluate`: pass@k and mean rewards of policies on the same prompts, with intervals and paired differences."""

from pathlib import Path
from typing import Annotated, Any

import typer

from multiref.cli.options import Name, Seed, TakeOver


def command(
    policy: Annotated[
        list[str],
        typer.Option(
            "--policy",
            "-p",
            help="name=PATH: a model folder or hub id. Once per policy; differences are against the first.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="A folder for evaluation.json and the samples; resumed where it exists.", show_default=False
        ),
    ],
    problems: Annotated[
        str | None,
        typer.Option(
            help="GSM8K-style problems: .jsonl with question and answer, or a hub id. Their reward says right or wrong."
        ),
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="Prompts instead: rows with `prompt` or `text`, pairs, or a .txt.")
    ] = None,
    words: Annotated[int | None, typer.Option(help="Of each of the --prompts only so many words.")] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            "--reward",
            "-r",
            help="gsm8k, lexicon=FILE, length=WORDS, model=FOLDER, python=FILE:FUNCTION, or a YAML file. Repeatable; "
            "default gsm8k for --problems.",
            show_default=False,
        ),
    ] = None,
    style: Annotated[str, typer.Option(help="Of problems: chat (a conversation that asks for <answer>) or plain.")] = "chat",
    name: Name = None,
    split: Annotated[str | None, typer.Option(help="Of a data set that has several. Default test, of --problems.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many prompts.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Completions of each prompt, under every policy.")] = 8,
    k: Annotated[
        list[int] | None,
        typer.Option("--k", help="pass@k for this k, at most --samples; repeatable. Default 1.", show_default=False),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="1: the policy itself. 0: its likeliest tokens.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest completion.")] = 256,
    batch: Annotated[int, typer.Option(min=1, help="Prompts side by side; a killed call loses at most these.")] = 8,
    resamples: Annotated[int, typer.Option(min=100, help="Of the bootstrap over prompts.")] = 2000,
    seed: Seed = 0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16.")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …; default a GPU if there is one.")] = None,
    take_over: TakeOver = False,
) -> dict[str, Any]:
    """Evaluate policies on the same prompts: pass@k (unbiased) and mean rewards, 95 % intervals by bootstrap over prompts,
    paired differences.

    Example: multiref evaluate --policy base=./base --policy trained=runs/gsm8k-0.5b/model --problems test.jsonl --samples 8 --k
    1 --k 4 --out runs/eval
    """
    from multiref.errors import ConfigError
    from multiref.runs.document import Document
    from multiref.runs.evaluating import EvaluationSettings
    from multiref.runs.evaluating import evaluate as carry_out
    from multiref.runs.rewards import read_rewards
    from multiref.runs.yaml_values import Plain
    from multiref.training.arguments import quiet

    quiet()
    if (problems is None) == (prompts is None):
        raise ConfigError("--problems, --prompts: expected one of the two.")
    named = dict(text.partition("=")[::2] for text in policy)
    if len(named) < len(policy) or any(not name or not path or "/" in name for name, path in named.items()):
        raise ConfigError("--policy: expected name=PATH, each name once, such as --policy base=./base.")
    if prompts is not None and not reward:
        raise ConfigError("--reward: expected at least one with --prompts: lexicon=FILE, length=WORDS or model=FOLDER.")
    source = (
        {"path": str(prompts), "words": words, "name": name, "split": split}
        if problems is None
        else {"path": problems, "kind": "gsm8k", "style": style, "name": name, "split": split or "test"}
    )
    rewards = read_rewards(reward or ["gsm8k"], answers=problems is not None)
    values: dict[str, Plain] = {
        "policies": {**named},
        "prompts": {**source, "limit": limit},
        "rewards": [each.model_dump() for each in rewards],
        "samples": samples,
        "k": [*(k or [1])],
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "batch": batch,
        "resamples": resamples,
        "seed": seed,
        "dtype": dtype,
    }
    settings = Document(values, "multiref evaluate").validate(EvaluationSettings)
    found = carry_out(settings, out, device=device, say=lambda text: print(text, flush=True), take_over=take_over)
    return {"output": str(out), "summary": found}
