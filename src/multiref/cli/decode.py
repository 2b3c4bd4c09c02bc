"""`multiref decode`: draws from the optimum without training, prompt by prompt as they are made."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from multiref.cli.options import Device, Dtype, NamedReferences, Seed, for_each, name_and_path


def command(
    reference: NamedReferences,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="A prompt. Repeatable.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Prompts instead: a file with one a line.")] = None,
    weight: Annotated[
        list[str] | None, typer.Option("--weight", "-w", help="name=NUMBER, of each reference; default equal ones.")
    ] = None,
    method: Annotated[str, typer.Option(help="smc, importance, rejection: the optimum; token: the per-token pool.")] = "smc",
    reward: Annotated[
        list[str] | None, typer.Option(help="lexicon=FILE, length=WORDS or model=FOLDER. Repeatable; default none: the escort.")
    ] = None,
    beta: Annotated[float | None, typer.Option(help="Strength of the regularizer; needed with a reward.")] = None,
    reward_max: Annotated[float | None, typer.Option(help="The largest reward that there is; rejection needs it.")] = None,
    n: Annotated[int, typer.Option("--particles", "-n", min=1, help="Particles of an island.")] = 64,
    islands: Annotated[int, typer.Option(min=1, help="Independent islands; their spread is the error.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest completion.")] = 64,
    min_new_tokens: Annotated[int, typer.Option(min=0, help="Only completions that do not end before so many.")] = 0,
    show: Annotated[int, typer.Option(min=1, help="Completions that are shown of each prompt, drawn by weight.")] = 1,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also keep all draws and weights, as JSON lines.")] = None,
    seed: Seed = 0,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Draw completions from π* ∝ ∏_k π_k^{w_k} e^{r/β}, without training. Each prompt's are shown as soon as they are drawn;
    with --method token, token by token.

    Example: multiref decode -r a=./a -r b=./b --prompt "Once upon a time" --show 3
    """
    from multiref import ReverseKL
    from multiref.decoding import Draws, sample
    from multiref.errors import ArgumentError
    from multiref.references import References
    from multiref.training.arguments import quiet

    quiet()
    asked = [*(prompt or []), *(prompts.read_text(encoding="utf-8").splitlines() if prompts is not None else [])]
    if not asked:
        raise ArgumentError("--prompt, --prompts: expected at least one prompt.")
    named = dict(map(name_and_path, reference))
    given = for_each("--weight", weight, list(named))
    if given and given.keys() != named.keys():
        raise ArgumentError(f"--weight: expected one of each reference ({', '.join(named)}), found {', '.join(given)}.")
    rule = ReverseKL(tuple(float(given[name]) for name in named) if given else None)
    refs = References(named, device=device, dtype=dtype or "auto")
    if method == "token" and not reward and out is None:
        _stream(refs, rule, asked, max_new_tokens, min_new_tokens, show, seed)
        return
    function, parts = _reward(reward), []
    options: dict[str, Any] = {"method": method, "n": n, "islands": islands, "reward_max": reward_max}
    for i, text in enumerate(asked):
        draws = sample(
            [text], refs, rule, function, beta, max_new_tokens=max_new_tokens, min_new_tokens=min_new_tokens,
            seed=seed + 7_919 * i, **options,
        )  # fmt: skip
        parts.append(draws)
        for place in range(show):
            print(f"{text}{draws.pick(seed + place)[0]}", flush=True)
        print(draws, file=sys.stderr, flush=True)
    if out is not None:
        first = parts[0]
        every = tuple(each for draws in parts for each in draws)
        tokens, calls = sum(draws.tokens for draws in parts), sum(draws.reward_calls for draws in parts)
        Draws(every, first.method, first.proposal, first.approximate, tokens, calls).save(out)


def _reward(given: list[str] | None) -> Any:
    """The named rewards as one function of prompts and completions; None for none."""
    if not given:
        return None
    from multiref.runs.rewards import make_rewards, read_rewards
    from multiref.training.online.rewards import total_reward

    rewards = make_rewards(read_rewards(given, answers=False))
    return lambda prompts, completions: total_reward(rewards, prompts, completions, {})[0].tolist()


def _stream(refs: Any, rule: Any, prompts: list[str], longest: int, shortest: int, show: int, seed: int) -> None:
    """The per-token pool, token by token."""
    from multiref.decoding import stream_tokens

    print("approximate: the references pooled token by token, another distribution than the optimum", file=sys.stderr)
    for i, text in enumerate(prompts):
        for place in range(show):
            print(text, end="", flush=True)
            for piece in stream_tokens(text, refs, rule, longest, min_new_tokens=shortest, seed=seed + 7_919 * i + place):
                print(piece, end="", flush=True)
            print(flush=True)
