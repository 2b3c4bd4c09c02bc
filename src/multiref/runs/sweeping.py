"""The curve over weights after training: K single-reference policies, one pool of samples, weights by importance."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from multiref.data.prompts import prompt_text
from multiref.data.sources import open_source
from multiref.errors import ConfigError
from multiref.evaluation import sample_each, score_samples
from multiref.models import Encoded, Generation, load
from multiref.references import content_key
from multiref.references.scores import same_vocabulary
from multiref.runs.base import Say
from multiref.runs.folder import RunFolder
from multiref.runs.strict import Strict
from multiref.training.online.rewards import as_rewards, total_reward
from multiref.weighting import importance_weights


class SweepSettings(Strict):
    """points: weights on the first of two runs, from 0 to 1 (for more runs the vertices and the middle).
    samples: completions a prompt from each
    run's policy, of at most max_new_tokens. limit: how many prompts."""

    points: int = Field(default=5, ge=2)
    samples: int = Field(default=8, gt=0)
    limit: int = Field(default=32, gt=0)
    max_new_tokens: int = Field(default=128, gt=0)
    seed: int = 0


def weight_grid(k: int, points: int) -> list[tuple[float, ...]]:
    """For two policies, `points` weights from (0, 1) to (1, 0); for more, the vertices and the middle."""
    if k == 2:
        return [(n / (points - 1), 1 - n / (points - 1)) for n in range(points)]
    return [tuple(float(i == j) for j in range(k)) for i in range(k)] + [(1 / k,) * k]


def sweep(
    runs: Sequence[str | Path],
    prompts: str | Path,
    out: str | Path,
    settings: SweepSettings,
    *,
    rewards: Any = (),
    say: Say = print,
) -> list[dict[str, Any]]:
    """Writes sweep.json; returns its rows: weights, effective sample size, mean length, and with `rewards` E_π[r] of each and
    of their sum.

    Args:
        runs: folders of finished runs under reverse KL, one reference each, with the same data and β. prompts: where from.
        rewards: functions of prompts and completions, `Reward`s, or {name: function}, as of `OnlineTrainer`.
    """
    names = _mergeable(runs)
    models = [load(RunFolder(run).model) for run in runs]
    same_vocabulary([str(run) for run in runs], [model.tokenizer.get_vocab() for model in models])
    with open_source(prompts) as opened:
        texts = _different((prompt_text(row, where) for where, row in opened()), settings.limit)
    say(f"{settings.samples} samples of each of {len(models)} policies for {len(texts)} prompts.")
    generation, items = Generation(settings.max_new_tokens), []
    seeds = [settings.seed + 104_729 * k for k in range(len(models))]
    drawn = [sample_each(model, texts, generation, group=settings.samples, seed=seed) for model, seed in zip(models, seeds)]
    for each in zip(*drawn):
        completions = tuple(ids for rollout in each for ids in rollout.completion_ids)
        items.append(Encoded(each[0].prompt_ids, completions, (False,) * len(completions)))
    logps = torch.stack([score_samples(model, items) for model in models])
    lengths = torch.tensor([[float(len(ids)) for ids in item.completions] for item in items], dtype=torch.float64)
    values = _rewarded(rewards, texts, items, models[0].tokenizer)
    rows = [_point(logps, lengths, weights, names, values) for weights in weight_grid(len(models), settings.points)]
    found = {"runs": [str(run) for run in runs], "points": rows}
    RunFolder(out).write("sweep.json", json.dumps(found, indent=1, ensure_ascii=False))
    for row in rows:
        say(_sentence(row))
    return rows


def _sentence(row: Mapping[str, Any]) -> str:
    shown = ", ".join(f"{name} {value:.3f}" for name, value in row["weights"].items())
    error = row.get("reward_error")
    gained = f", reward {row['reward']:.3f}" + ("" if error is None else f" ± {error:.3f}") if "reward" in row else ""
    return (
        f"{shown}: effective sample size {row['ess']:.1f} of {row['samples']}, {row['tokens']:.1f} tokens a completion{gained}"
    )


def _different(prompts: Iterable[Any], limit: int) -> list[Any]:
    """The first so many that differ."""
    found: dict[bytes, Any] = {}
    for prompt in prompts:
        found.setdefault(content_key(prompt, ""), prompt)
        if len(found) == limit:
            break
    return list(found.values())


def _rewarded(rewards: Any, prompts: Sequence[Any], items: Sequence[Encoded], tokenizer: Any) -> dict[str, Tensor]:
    """{"reward": [B, K·n], and each reward's own where there are several} of the samples; empty without rewards."""
    each_one = as_rewards(rewards)
    if not each_one:
        return {}
    asked: list[Any] = []
    said: list[Any] = []
    for prompt, item in zip(prompts, items, strict=True):
        words = tokenizer.batch_decode([list(ids) for ids in item.completions], skip_special_tokens=True)
        said += words if isinstance(prompt, str) else [({"role": "assistant", "content": text},) for text in words]
        asked += [prompt] * len(words)
    total, parts = total_reward(each_one, asked, said, {})
    values = {"reward": total} | ({f"rewards/{name}": value for name, value in parts.items()} if len(parts) > 1 else {})
    return {name: value.reshape(len(items), -1) for name, value in values.items()}


def _point(
    logps: Tensor, lengths: Tensor, weights: tuple[float, ...], names: Sequence[str], values: Mapping[str, Tensor]
) -> dict[str, Any]:
    """One point of the curve: every mean is Σ_i u_i v_i of a prompt's samples, averaged over prompts;
    `_error` its standard error over prompts."""
    u, ess = importance_weights(logps, torch.tensor(weights, dtype=torch.float64))
    row = {
        "weights": dict(zip(names, weights)),
        "ess": float(ess.mean()),
        "ess_least": float(ess.min()),
        "samples": u.shape[-1],
        "tokens": float((u * lengths).sum(-1).mean()),
    }
    for name, value in values.items():
        means = (u * value).sum(-1)
        error = float(means.std()) / len(means) ** 0.5 if len(means) > 1 else None
        row |= {name: float(means.mean()), f"{name}_error": error}
    return row


def _mergeable(runs: Sequence[str | Path]) -> list[str]:
    """The name of each run's one reference. ConfigError for runs whose optima do not merge."""
    if len(runs) < 2:
        raise ConfigError("runs: expected at least two, one a reference.")
    configs, names = [], []
    for run in runs:
        folder = RunFolder(run)
        config = folder.settings()
        if not folder.model.exists():
            raise ConfigError(f"{run}: no finished run; expected model/ of `multiref train`.")
        if (
            config["task"] != "preference"
            or config["regularizer"]["kind"] != "ReverseKL"
            or config["objective"]["kind"] != "preference"
        ):
            asked = config.get("regularizer", {}).get("kind", config["task"])
            raise ConfigError(f"{run}: trained with {asked}; the sweep is exact for preference runs under reverse KL only.")
        used = [each["name"] for each in config["references"] if each["weight"] is None or each["weight"] > 0]
        if len(used) != 1:
            raise ConfigError(f"{run}: {len(used)} references; expected one (or weight 1 on one of them).")
        configs.append(config)
        names += used
    for key in ("beta", "data"):
        if any(config[key] != configs[0][key] for config in configs):
            differ = ", ".join(str(config[key]) for config in configs)
            raise ConfigError(f"{key}: the runs differ ({differ}); the merge needs the same reward and β.")
    return names
