"""`multiref decode`: draw from the optimum without training: weighted samples of the references' pool, with a reward."""

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from multiref._progress import each_told
from multiref.cli.options import REWARDS, Device, NamedReferences, Out, Seed, belong, by_name, weights_of
from multiref.cli.voice import Made
from multiref.errors import ArgumentError

TOLD = ("log_partition", "error", "largest_share", "effective_size", "ancestors", "median_length", "cut", "not_canonical")


def pooled(
    reference: NamedReferences,
    weight: Annotated[list[str] | None, "--weight -w", "name=NUMBER, of each reference; default equal ones."] = None,
    dtype: Annotated[str | None, "float32, bfloat16, float16. Default float32; on a GPU bfloat16."] = None,
    device: Device = None,
) -> Any:
    """(references, reverse KL with the weights of --weight in their order)."""
    from multiref import ReverseKL
    from multiref.references import References
    from multiref.training.arguments import quiet

    quiet()
    named = by_name("--reference", reference)
    return References(named, device=device, dtype=dtype or "auto"), ReverseKL(weights_of(list(named), weight))


def drawing(
    reward: Annotated[list[str] | None, f"For the optimum: {REWARDS}. Repeatable; default none: their pool itself."] = None,
    beta: Annotated[float | None, "Strength of the regularizer, in units of the reward; needed with a reward."] = None,
    reward_max: Annotated[float | None, "The largest reward that there is; rejection needs it."] = None,
    proposal: Annotated[
        str | None, "For the optimum: what it proposes from. Where vocabularies differ, the name of the reference that does."
    ] = None,
    particles: Annotated[
        int | None, typer.Option("--particles", "-n", min=1, help="For the optimum: particles of an island. Default 64.")
    ] = None,
    islands: Annotated[
        int | None, typer.Option(min=1, help="For the optimum: independent islands; their spread is the error. Default 8.")
    ] = None,
) -> Any:
    """(a row of prompts → the rewards as one function of prompts and completions, or None; β, the other options of a draw that
    were given)."""
    rewarding = None
    belong("--reward", reward, beta=beta, reward_max=reward_max)
    if reward:
        from multiref.evaluation.rewarded import reward_of_row
        from multiref.runs.rewards import make_rewards, read_rewards

        rewarding = partial(reward_of_row, rewards=make_rewards(read_rewards(reward, answers=False)))
    options = {"reward_max": reward_max, "proposal": proposal, "n": particles, "islands": islands}
    return rewarding, beta, {name: value for name, value in options.items() if value is not None}


def _prompts(
    prompt: Annotated[list[str] | None, "--prompt -p", "A prompt. Repeatable."] = None,
    prompts: Annotated[str | None, "Prompts instead: a .txt with one a line, or rows with `prompt`, as for evaluate."] = None,
    name: Annotated[str | None, "--name", "Configuration of a data set that has several."] = None,
    split: Annotated[str | None, "--split", "Split of a data set, or a part: 'train[:5%]'."] = None,
) -> list[dict[str, Any]]:
    belong("--prompts", prompts, name=name, split=split)
    asked = [*({"prompt": each} for each in prompt or ()), *([] if prompts is None else _read(prompts, name, split))]
    if not asked:
        raise ArgumentError("--prompt, --prompts: expected at least one prompt.")
    return asked


def _read(prompts: str, name: str | None, split: str | None) -> Iterator[dict[str, Any]]:
    """Of a text a line, or a row with the columns that rewards read. ArgumentError for a conversation."""
    from multiref._files import as_path, read_lines
    from multiref.data.files import is_rows
    from multiref.runs.prompts import read_rows

    path = as_path(prompts)
    if is_rows(prompts) is None and (path.suffix == ".txt" or os.path.isfile(path)):
        belong("rows", False, name=name, split=split)
        lines = (line.rstrip("\r\n") for _, line in read_lines(path, "a file with one prompt a line"))
        yield from ({"prompt": line} for line in lines if line.strip())
        return
    for where, row in read_rows(prompts, name=name, split=split):
        if not isinstance(row["prompt"], str):
            raise ArgumentError(f"{where}: a conversation; decode goes on from texts. `multiref serve` answers conversations.")
        yield row


def command(
    asked: Annotated[list[dict[str, Any]], Made(_prompts)],
    pool: Annotated[Any, Made(pooled)],
    drawn: Annotated[Any, Made(drawing)],
    method: Annotated[str, "smc, importance, rejection: the optimum; token: the per-token pool."] = "smc",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest completion, in tokens.")] = 64,
    min_new_tokens: Annotated[int, typer.Option(min=0, help="Only completions of at least NUMBER tokens.")] = 0,
    show: Annotated[int, typer.Option(min=1, help="Completions that are shown of each prompt, drawn by weight.")] = 1,
    out: Annotated[Path | None, Out, "Also keep all draws and weights, as JSON lines."] = None,
    seed: Seed = 0,
) -> dict[str, Any]:
    """Draw completions from π* ∝ ∏_k π_k^{w_k} e^{r/β}, without training. Each prompt's are shown as soon as they are drawn;
    with --method token, token by token.

    Example: multiref decode -r a=./a -r b=./b --prompt "Once upon a time" --show 3
    """
    from multiref._files import check_writable
    from multiref.decoding import sample
    from multiref.references import References

    (opened, rule), (rewarding, beta, options) = pool, drawn
    streams = method == "token" and rewarding is None and out is None
    belong("--reward, --out or another --method", not streams, particles=options.get("n"), islands=options.get("islands"))
    belong("a --method of the optimum", method != "token", proposal=options.get("proposal"))
    if out is not None:
        check_writable(out)
    refs = References({each: opened.open(each) for each in opened.names})  # each is read once, whatever is asked of it
    limits: dict[str, Any] = {"max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens}
    if streams:
        return _stream(refs, rule, [row["prompt"] for row in asked], limits, show, seed)
    parts, found = [], []
    for i, row in enumerate(each_told(asked, "prompts", len(asked)) if len(asked) > 1 else asked):
        own, text, function = seed + 7_919 * i, row["prompt"], rewarding and rewarding(row)
        told = None if i else partial(print, "" if len(asked) == 1 else "Each prompt:", file=sys.stderr, flush=True)
        draws = sample([text], refs, rule, function, beta, method=method, seed=own, say=told, **options, **limits)
        parts.append(draws)
        found.append(_show(text, draws, [draws.pick(own + place)[0] for place in range(show)]))
    if out is not None:
        every, tokens = tuple(each for draws in parts for each in draws), sum(draws.tokens for draws in parts)
        calls, foretold = sum(draws.reward_calls for draws in parts), parts[-1].foretold
        foretold = {name: sum(draws.foretold[name] for draws in parts) for name in foretold}
        replace(parts[0], prompts=every, tokens=tokens, reward_calls=calls, foretold=foretold).save(out)
    return {"method": method, "approximate": parts[0].approximate or None, "prompts": found, "output": out and str(out)}


def _show(text: str, draws: Any, picked: list[str]) -> dict[str, Any]:
    """The completions that were picked, on standard output; what the draws say of themselves, beside it and as fields."""
    for each in picked:
        print(f"{text}{each}", flush=True)
    print(draws, file=sys.stderr, flush=True)
    return {"prompt": text, "completions": picked, **{key: getattr(draws[0], key) for key in TOLD}}


def _stream(refs: Any, rule: Any, prompts: list[str], limits: dict[str, int], show: int, seed: int) -> dict[str, Any]:
    """The per-token pool, token by token."""
    from multiref.decoding import stream_tokens

    approximate, found = "the references pooled token by token, another distribution than the optimum", []
    note = partial(print, file=sys.stderr, flush=True)
    note(f"approximate: {approximate}")
    for i, text in enumerate(prompts):
        said = ["" for _ in range(show)]
        for place in range(show):
            told = None if i or place else partial(note, "" if len(prompts) * show == 1 else "Each completion:")
            pieces = stream_tokens(text, refs, rule, **limits, seed=seed + 7_919 * i + place, say=told)
            first = next(pieces, "")  # what it may take is told by then
            print(text, end="", flush=True)
            for piece in chain([first], pieces):
                print(piece, end="", flush=True)
                said[place] += piece
            print(flush=True)
        found.append({"prompt": text, "completions": said})
    return {"method": "token", "approximate": approximate, "prompts": found, "output": None}
