"""`multiref evaluate`: pass@k and mean rewards of policies on the same prompts, with intervals and paired differences."""

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["command"]


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
    prompts: Annotated[Path | None, typer.Option(help="Prompts instead: .jsonl with `prompt` or `text`, or .txt.")] = None,
    words: Annotated[int | None, typer.Option(help="Of each of the --prompts only so many words.")] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            "--reward",
            "-r",
            help="gsm8k, lexicon:FILE, length:WORDS or model:PATH. Once per reward; default gsm8k for --problems.",
            show_default=False,
        ),
    ] = None,
    style: Annotated[str, typer.Option(help="Of problems: chat (a conversation that asks for <answer>) or plain.")] = "chat",
    split: Annotated[str, typer.Option(help="Of a hub data set.")] = "test",
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
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16.")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …; default a GPU if there is one.")] = None,
) -> None:
    """Evaluate policies on the same prompts: pass@k (unbiased) and mean rewards, 95 % intervals by bootstrap over prompts, paired differences.

    Example: multiref evaluate --policy base=./base --policy trained=runs/gsm8k-0.5b/model --problems test.jsonl --samples 8 --k 1 --k 4 --out runs/eval
    """
    from multiref.runs.evaluating import evaluate
    from multiref.training.arguments import quiet

    quiet()
    settings: dict[str, Any] = {
        "problems": problems, "prompts": None if prompts is None else str(prompts), "words": words, "style": style, "split": split, "limit": limit,
        "rewards": reward or [], "samples": samples, "temperature": temperature, "max_new_tokens": max_new_tokens, "batch": batch, "seed": seed, "dtype": dtype,
    }  # fmt: skip
    evaluate(policy, out, settings, ks=k or [1], resamples=resamples, device=device, say=lambda text: print(text, flush=True))
