"""What `multiref evaluate` does: each policy in turn samples the same prompts; the figures and a table at the end."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from multiref.evaluation import PassAtK, sample_rewards
from multiref.models import Generation, ModelSpec, load
from multiref.runs.base import FORMAT, Say
from multiref.runs.folder import RunFolder
from multiref.runs.prompts import Prompts, Row
from multiref.runs.rewards import RewardSetting, make_rewards
from multiref.runs.strict import Strict
from multiref.training.online.rewards import Reward


class EvaluationSettings(Strict):
    """Which policies, on which prompts, by which rewards.

    policies: name → folder or hub id; differences are against the first.
    samples: completions of each prompt under every policy. k: of pass@k.
    batch: prompts side by side. resamples: of the bootstrap over prompts.
    """

    policies: dict[str, str] = Field(min_length=1)
    prompts: Prompts
    rewards: list[RewardSetting] = Field(min_length=1)
    samples: int = Field(default=8, gt=0)
    k: list[int] = Field(default_factory=lambda: [1])
    temperature: float = Field(default=1.0, ge=0)
    max_new_tokens: int = Field(default=256, gt=0)
    batch: int = Field(default=8, gt=0)
    resamples: int = Field(default=2000, ge=100)
    seed: int = 0
    dtype: str = "float32"

    @model_validator(mode="after")
    def _within(self) -> Self:
        if wrong := [k for k in self.k if not 1 <= k <= self.samples]:
            raise ValueError(f"k: expected from 1 to samples = {self.samples}, found {wrong[0]}.")
        return self


def evaluate(
    settings: EvaluationSettings, out: str | Path, *, device: str | None = None, say: Say = print, take_over: bool = False
) -> dict[str, Any]:
    """Writes `out`/evaluation.json, config.yaml and samples/<policy>.jsonl; returns the summary.
    A second call with the same settings samples
    what is missing; k and resamples may change. take_over: from a process that is doing it."""
    rows, rewards, folder = settings.prompts.rows(), make_rewards(settings.rewards), RunFolder(out)
    asked = {"format": FORMAT, **settings.model_dump(mode="json", exclude={"k", "resamples"})}
    with folder.claimed(asked, take_over=take_over):
        return _compare(settings, rows, rewards, folder, device, say)


def _compare(
    settings: EvaluationSettings, rows: list[Row], rewards: list[Reward], folder: RunFolder, device: str | None, say: Say
) -> dict[str, Any]:
    found = {}
    for name, path in settings.policies.items():
        say(f"{name}: {path}")
        found[name] = sample_rewards(
            load(ModelSpec(path, dtype=settings.dtype), device=device),
            rows,
            rewards,
            Generation(settings.max_new_tokens, temperature=settings.temperature),
            samples=settings.samples,
            seed=settings.seed,
            block=settings.batch,
            store=folder.path / "samples" / f"{name}.jsonl",
            say=partial(_under, folder, say, name),
        )
    right = {name: each["correctness"] > 0 for name, each in found.items() if "correctness" in each}
    shown = settings.model_dump(include={"samples", "temperature", "max_new_tokens", "seed"})
    summary = PassAtK(found, right, shown).summary(sorted(set(settings.k)), resamples=settings.resamples)
    folder.write("evaluation.json", json.dumps(summary, indent=1, ensure_ascii=False))
    say(table(summary))
    return summary


def _under(folder: RunFolder, say: Say, name: str, text: str) -> None:
    folder.check()
    say(f"{name}: {text}")


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
    foot = (
        f"{s['prompts']} prompts × {s['samples']} samples at temperature {s['temperature']:g}, "
        f"at most {s['max_new_tokens']} tokens, "
        f"seed {s['seed']}; 95 % intervals by {s['resamples']} resamples of the prompts"
    )
    return "\n".join([head, *body, foot])


def _cell(mean: float, low: float | None, high: float | None) -> str:
    return f"{mean:.4g}" if low is None or high is None else f"{mean:.4g} [{low:.4g}, {high:.4g}]"
