"""`multiref evaluate`: pass@k and mean rewards of policies on the same prompts, with intervals and paired differences; with
references also J, KL to each, win rates and diversity, beside the token pool, best-of-n and the optimum."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from multiref.cli.options import Name, Seed, TakeOver, for_each, name_and_path

Policies: TypeAlias = Annotated[
    list[str],
    typer.Option(
        "--policy",
        "-p",
        help="name=PATH, once per policy; differences are against the first.",
        show_default=False,
    ),
]
Out: TypeAlias = Annotated[
    Path,
    typer.Option(
        "--out",
        "-o",
        help="A folder for report.html, evaluation.json and the samples; resumed where it exists.",
        show_default=False,
    ),
]
Problems: TypeAlias = Annotated[
    str | None,
    typer.Option(help="GSM8K-style problems: .jsonl with question and answer, or a hub id. Their reward says right or wrong."),
]
PromptFile: TypeAlias = Annotated[
    str | None, typer.Option(help="Prompts instead: rows with `prompt` or `text`, pairs, or a .txt.")
]
Rewards: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--reward",
        "-r",
        help="gsm8k, lexicon=FILE, length=WORDS, model=FOLDER, python=FILE:FUNCTION, or a YAML file. Repeatable; "
        "default gsm8k for --problems.",
        show_default=False,
    ),
]
PassAt: TypeAlias = Annotated[
    list[int] | None,
    typer.Option("--k", help="pass@k for this k, at most --samples; repeatable. Default 1.", show_default=False),
]
Compared: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--reference", help="name=PATH: also KL to it, J, win rates, diversity. Repeatable.", show_default=False),
]
Weighed: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--weight", "-w", help="name=NUMBER, of each reference; default equal ones.", show_default=False),
]
Beside: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(help="references, token-pool, best-of-N or optimum: compared too. Repeatable.", show_default=False),
]


def command(
    policy: Policies,
    out: Out,
    problems: Problems = None,
    prompts: PromptFile = None,
    words: Annotated[int | None, typer.Option(help="Of each of the --prompts only so many words.")] = None,
    reward: Rewards = None,
    style: Annotated[str, typer.Option(help="Of problems: chat (a conversation that asks for <answer>) or plain.")] = "chat",
    name: Name = None,
    split: Annotated[str | None, typer.Option(help="Of a data set that has several. Default test, of --problems.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many prompts.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Completions of each prompt, under every policy.")] = 8,
    k: PassAt = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="1: the policy itself. 0: its likeliest tokens.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest completion.")] = 256,
    batch: Annotated[int, typer.Option(min=1, help="Prompts side by side; a killed call loses at most these.")] = 8,
    resamples: Annotated[int, typer.Option(min=100, help="Of the bootstrap over prompts.")] = 2000,
    seed: Seed = 0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16.")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …; default a GPU if there is one.")] = None,
    take_over: TakeOver = False,
    reference: Compared = None,
    weight: Weighed = None,
    beta: Annotated[float | None, typer.Option(help="Strength of the regularizer, for J; with --reference.")] = None,
    beside: Beside = None,
) -> dict[str, Any]:
    """Evaluate policies on the same prompts: pass@k (unbiased) and mean rewards, 95 % intervals by bootstrap over prompts,
    paired differences. With --reference and --beta also J, KL to each reference, win rate, length and diversity.

    Example: multiref evaluate -p base=./base -p trained=runs/gsm8k/model --problems test.jsonl --k 1 --k 4 --out runs/eval
    """
    from multiref.runs.document import Document
    from multiref.runs.evaluating import EvaluationSettings
    from multiref.runs.evaluating import evaluate as carry_out
    from multiref.runs.yaml_values import Plain
    from multiref.training.arguments import quiet

    quiet()
    source = {"name": name, "limit": limit} | _source(problems, prompts, words, style, split)
    plain: dict[str, Plain] = {
        "samples": samples,
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "batch": batch,
        "resamples": resamples,
        "seed": seed,
        "dtype": dtype,
    }
    values: dict[str, Plain] = {"policies": {**_named(policy)}, "prompts": source, "rewards": _rewards(reward, problems)}
    values["k"] = [*(k or [1])]
    document = Document({**values, **plain, **_compared(reference, weight, beta, beside)}, "multiref evaluate")
    settings = document.validate(EvaluationSettings)
    found = carry_out(settings, out, device=device, say=lambda text: print(text, flush=True), take_over=take_over)
    return {"output": str(out), "summary": found, "next": f"open {out / 'report.html'}"}


def _named(policy: Sequence[str]) -> dict[str, str]:
    from multiref.errors import ConfigError

    named = dict(text.partition("=")[::2] for text in policy)
    if len(named) < len(policy) or any(not name or not path or "/" in name for name, path in named.items()):
        raise ConfigError("--policy: expected name=PATH, each name once, such as --policy base=./base.")
    return named


def _source(problems: str | None, prompts: str | None, words: int | None, style: str, split: str | None) -> dict[str, Any]:
    """Where the prompts are from, as a run's file says it."""
    from multiref.errors import ConfigError

    if (problems is None) == (prompts is None):
        raise ConfigError("--problems, --prompts: expected one of the two.")
    if problems is None:
        return {"path": str(prompts), "words": words, "split": split}
    return {"path": problems, "kind": "gsm8k", "style": style, "split": split or "test"}


def _rewards(reward: list[str] | None, problems: str | None) -> list[Any]:
    from multiref.errors import ConfigError
    from multiref.runs.rewards import read_rewards

    if problems is None and not reward:
        raise ConfigError("--reward: expected at least one with --prompts: lexicon=FILE, length=WORDS or model=FOLDER.")
    return [each.model_dump() for each in read_rewards(reward or ["gsm8k"], answers=problems is not None)]


def _compared(
    reference: list[str] | None, weight: list[str] | None, beta: float | None, beside: list[str] | None
) -> dict[str, Any]:
    """References, weights, β and who stands beside; nothing where none is named."""
    from multiref.errors import ConfigError

    named = dict(map(name_and_path, reference or []))
    given = for_each("--weight", weight, list(named)) if named else dict(map(name_and_path, weight or []))
    if len(named) < len(reference or []) or (given and given.keys() != named.keys()):
        raise ConfigError("--reference, --weight: expected name=PATH once of each, and a weight of each or of none.")
    try:
        weights = [float(given[name]) for name in named] if given else None
    except ValueError as error:
        raise ConfigError(f"--weight: expected name=NUMBER ({error}).") from None
    found: dict[str, Any] = {"references": named, "weights": weights, "beta": beta, "beside": [*(beside or [])]}
    return found if any(found.values()) else {}
