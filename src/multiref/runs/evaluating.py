"""What `multiref evaluate` does: each policy in turn samples the same prompts; the figures and a table at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from multiref._files import write_whole
from multiref.runs.prompts import rows_of
from multiref.runs.rewards import made_rewards
from multiref.runs.settings_online import Prompts, RewardSetting
from multiref.errors import ConfigError, OutputError

__all__ = ["evaluate"]


def evaluate(
    policies: Sequence[str],
    out: Path,
    settings: Mapping[str, Any],
    *,
    ks: Sequence[int],
    resamples: int,
    device: str | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Writes `out`/evaluation.json, settings.json and samples/<policy>.jsonl; returns the summary. A second call with the same settings samples what is missing."""
    named = _named(policies)
    if max(ks) > settings["samples"] or min(ks) < 1:
        raise ConfigError(
            f"--k: expected from 1 to --samples = {settings['samples']}, found {max(ks) if min(ks) >= 1 else min(ks)}."
        )
    rows, rewards = _rows(settings), made_rewards(_rewards(settings))
    _claim(out, {**settings, "policies": named})
    found: dict[str, Any] = {}
    for name, path in named.items():
        found[name] = _of_policy(name, path, rows, rewards, settings, out, device, say)
    summary = _summary(found, settings, ks, resamples)
    write_whole(out / "evaluation.json", json.dumps(summary, indent=1, ensure_ascii=False))
    say(table(summary))
    return summary


def table(summary: Mapping[str, Any]) -> str:
    """Policies and their paired differences, one a line: mean [low, high] of every metric."""
    lines = {**summary["policies"], **summary["differences"]}
    metrics = list(next(iter(lines.values())))
    cells = {name: [_cell(*figure) for figure in figures.values()] for name, figures in lines.items()}
    width = max(map(len, cells))
    widths = [max(len(metric), *(len(row[i]) for row in cells.values())) for i, metric in enumerate(metrics)]
    head = " " * width + "  " + "  ".join(f"{metric:>{w}}" for metric, w in zip(metrics, widths))
    body = [f"{name:{width}}  " + "  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths)) for name, row in cells.items()]
    s = summary["settings"]
    foot = f"{s['prompts']} prompts × {s['samples']} samples at temperature {s['temperature']:g}, at most {s['max_new_tokens']} tokens, seed {s['seed']}; 95 % intervals by {s['resamples']} resamples of the prompts"
    return "\n".join([head, *body, foot])


def _cell(mean: float, low: float | None, high: float | None) -> str:
    return f"{mean:.4g}" if low is None or high is None else f"{mean:.4g} [{low:.4g}, {high:.4g}]"


def _named(policies: Sequence[str]) -> dict[str, str]:
    named: dict[str, str] = {}
    for given in policies:
        name, equals, path = given.partition("=")
        if not equals or not name or not path or name in named or "/" in name:
            raise ConfigError(f"--policy {given}: expected name=PATH, each name once, such as --policy base=./base.")
        named[name] = path
    return named


def _rows(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    if (settings["problems"] is None) == (settings["prompts"] is None):
        raise ConfigError("--problems, --prompts: expected one of the two.")
    if settings["problems"] is not None:
        source = Prompts(
            settings["problems"], kind="gsm8k", style=settings["style"], split=settings["split"], limit=settings["limit"]
        )
    else:
        source = Prompts(settings["prompts"], words=settings["words"], limit=settings["limit"])
    rows = rows_of(source, [])
    if not rows:
        raise ConfigError("--problems, --prompts: found no prompt; expected at least one.")
    return rows


def _rewards(settings: Mapping[str, Any]) -> list[RewardSetting]:
    given = settings["rewards"] or (["gsm8k"] if settings["problems"] is not None else [])
    if not given:
        raise ConfigError("--reward: expected at least one with --prompts: lexicon:FILE, length:WORDS or model:PATH.")
    made = []
    for text in given:
        kind, _, value = text.partition(":")
        if kind == "gsm8k" and settings["problems"] is None:
            raise ConfigError("--reward gsm8k: needs --problems, whose answers it compares with.")
        if kind == "length" and not value.isdigit():
            raise ConfigError(f"--reward {text}: expected length:WORDS, such as length:50.")
        made.append(RewardSetting(kind, target=int(value)) if kind == "length" else RewardSetting(kind, path=value or None))
    return made


def _of_policy(
    name: str,
    path: str,
    rows: list[dict[str, Any]],
    rewards: list[Any],
    settings: Mapping[str, Any],
    out: Path,
    device: Any,
    say: Callable[[str], None],
) -> dict[str, Any]:
    from multiref.evaluation import sample_rewards
    from multiref.models import Generation, ModelSpec, load

    say(f"{name}: {path}")
    generation = Generation(settings["max_new_tokens"], temperature=float(settings["temperature"]))
    return sample_rewards(
        load(ModelSpec(path, dtype=settings["dtype"]), device=device), rows, rewards, generation, samples=settings["samples"], seed=settings["seed"], block=settings["batch"], store=out / "samples" / f"{name}.jsonl",
        say=lambda text: say(f"{name}: {text}"),
    )  # fmt: skip


def _summary(found: Mapping[str, Any], settings: Mapping[str, Any], ks: Sequence[int], resamples: int) -> dict[str, Any]:
    from multiref.evaluation import PassAtK

    right = {name: each["correctness"] > 0 for name, each in found.items() if "correctness" in each}
    shown = {key: settings[key] for key in ("samples", "temperature", "max_new_tokens", "seed")}
    return PassAtK(found, right, shown).summary(sorted(set(ks)), resamples=resamples)


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """The folder belongs to one evaluation: ConfigError where it holds another, naming the first difference."""
    path = out / "settings.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        there = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except (OSError, ValueError) as error:
        raise OutputError(f"{out}: cannot be used for an evaluation: {error}. Choose another folder.") from None
    if there is not None:
        for key in settings:
            if there.get(key) != settings[key]:
                raise ConfigError(
                    f"{out} holds an evaluation with {key} = {there.get(key)!r}, not {settings[key]!r}. Choose another folder."
                )
    write_whole(path, json.dumps(settings, indent=1, ensure_ascii=False))
