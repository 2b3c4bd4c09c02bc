"""The curve over weights after training: K single-reference policies, one pool of samples, weights by importance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from multiref.runs.folder import RunFolder
from multiref.errors import ConfigError

__all__ = ["importance_weights", "rewards_named", "sweep", "weight_grid"]


def importance_weights(log_policies: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    r"""[K, B, K·n], [K] → normalised weights [B, K·n] and effective sample sizes [B].

    Samples of prompt b: n from each of the K policies, so their law is the mixture q = (1/K) Σ_k π_k. The target is the geometric mean:

        u_i ∝ Π_k π_k(y_i)^{w_k} / q(y_i),     ESS = (Σ u)² / Σ u²

    Self-normalised: biased by O(1/n), consistent. At a vertex it is that policy, with u ≤ K before normalisation.

    Reference: docs/theory.md 1(c) (DERIVED) for the target; balance heuristic, Veach and Guibas, 1995.
    """
    mixture = torch.logsumexp(log_policies, 0) - torch.tensor(float(len(log_policies))).log()
    log_u = (weights[:, None, None] * log_policies).sum(0) - mixture
    u = (log_u - log_u.logsumexp(-1, keepdim=True)).exp()
    return u, 1 / u.square().sum(-1)


def weight_grid(k: int, points: int) -> list[tuple[float, ...]]:
    """For two policies, `points` weights from (0, 1) to (1, 0); for more, the vertices and the middle."""
    if k == 2:
        if points < 2:
            raise ConfigError(f"points: expected at least two, found {points}.")
        return [(n / (points - 1), 1 - n / (points - 1)) for n in range(points)]
    return [tuple(float(i == j) for j in range(k)) for i in range(k)] + [(1 / k,) * k]


def sweep(
    runs: Sequence[Path],
    prompts: Path,
    out: Path,
    *,
    points: int,
    samples: int,
    limit: int,
    max_new_tokens: int,
    seed: int,
    say: Any,
    rewards: Any = (),
) -> list[dict[str, Any]]:
    """Writes sweep.json; returns its rows: weights, effective sample size, mean length, and with `rewards` E_π[r] of each and of their sum.

    rewards: functions of prompts and completions, `Reward`s, or {name: function}, as of `OnlineTrainer`.
    """
    from multiref.data import read_pairs
    from multiref.evaluation import sample_each, score_samples
    from multiref.models import Generation, load
    from multiref.models.encoding import Encoded
    from multiref.references.scores import same_vocabulary

    configs = [_single(run) for run in runs]
    _same(runs, configs)
    models = [load(RunFolder(run).model) for run in runs]
    same_vocabulary([str(run) for run in runs], [model.tokenizer.get_vocab() for model in models])
    texts = list(dict.fromkeys(pair.prompt for pair in read_pairs(prompts)))[:limit]
    say(f"{samples} samples of each of {len(models)} policies for {len(texts)} prompts.")
    generation = Generation(max_new_tokens)
    drawn = [
        sample_each(model, texts, generation, group=samples, seed=seed + 104_729 * k) for k, model in enumerate(models)
    ]
    items = []
    for each in zip(*drawn):
        completions = tuple(ids for rollout in each for ids in rollout.completion_ids)
        items.append(Encoded(each[0].prompt_ids, completions, (False,) * len(completions)))
    logps = torch.stack([score_samples(model, items) for model in models])
    lengths = torch.tensor([[float(len(ids)) for ids in item.completions] for item in items], dtype=torch.float64)
    values = _rewarded(rewards, texts, items, models[0].tokenizer)
    rows = [_point(logps, lengths, weights, configs, values) for weights in weight_grid(len(models), points)]
    out.mkdir(parents=True, exist_ok=True)
    RunFolder(out).write(
        "sweep.json", json.dumps({"runs": [str(run) for run in runs], "points": rows}, indent=1, ensure_ascii=False)
    )
    for row in rows:
        shown = ", ".join(f"{name} {value:.3f}" for name, value in row["weights"].items())
        gained = (
            f", reward {row['reward']:.3f}" + (f" ± {row['reward_error']:.3f}" if row["reward_error"] is not None else "")
            if "reward" in row
            else ""
        )
        say(
            f"{shown}: effective sample size {row['ess']:.1f} of {row['samples']}, {row['tokens']:.1f} tokens a completion{gained}"
        )
    return rows


def rewards_named(given: Sequence[str]) -> list[Any]:
    """`lexicon=FILE`, `model=FOLDER`, `length=WORDS`, or a YAML file with `rewards:` → rewards. ConfigError for what is none of these."""
    from multiref.runs.rewards import made_rewards
    from multiref.runs.settings_online import RewardSetting
    from multiref.runs.config import build, read_yaml

    settings: list[RewardSetting] = []
    for text in given:
        kind, equals, value = text.partition("=")
        if not equals and text.endswith((".yaml", ".yml")):
            rows = read_yaml(text).get("rewards") or []
            if not isinstance(rows, list) or not rows:
                raise ConfigError(f"{text}: no `rewards:` there; expected a list such as [{{kind: lexicon, path: words.txt}}].")
            settings += [build(RewardSetting, row, f"{text}: rewards[{n}]") for n, row in enumerate(rows)]
        elif equals and kind == "length" and value.isdigit() and int(value) > 0:
            settings.append(RewardSetting("length", target=int(value)))
        elif equals and kind in ("lexicon", "model") and value:
            settings.append(RewardSetting(kind, path=value))
        else:
            raise ConfigError(
                f"--reward {text}: expected lexicon=FILE, model=FOLDER, length=WORDS, or a YAML file with `rewards:`."
            )
    if any(setting.kind == "gsm8k" for setting in settings):
        raise ConfigError(
            "rewards: gsm8k needs each problem's answer, which pairs do not have; use `multiref evaluate` on the runs."
        )
    return made_rewards(settings)


def _rewarded(rewards: Any, prompts: Sequence[Any], items: Sequence[Any], tokenizer: Any) -> dict[str, Tensor]:
    """{"reward": [B, K·n], and each reward's own where there are several} of the samples; empty without rewards."""
    from multiref.training.online.rewards import as_rewards, total_reward

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
    logps: Tensor,
    lengths: Tensor,
    weights: tuple[float, ...],
    configs: Sequence[dict[str, Any]],
    values: Mapping[str, Tensor],
) -> dict[str, Any]:
    """One point of the curve: every mean is Σ_i u_i v_i of a prompt's samples, averaged over prompts; `_error` its standard error over prompts."""
    u, ess = importance_weights(logps, torch.tensor(weights, dtype=torch.float64))
    names = [config["references"][0]["name"] for config in configs]
    return {
        "weights": dict(zip(names, weights)),
        "ess": float(ess.mean()),
        "ess_least": float(ess.min()),
        "samples": u.shape[-1],
        "tokens": float((u * lengths).sum(-1).mean()),
    } | {name: number for key, value in values.items() for name, number in _mean(key, (u * value).sum(-1)).items()}


def _mean(name: str, prompts: Tensor) -> dict[str, float | None]:
    error = float(prompts.std()) / len(prompts) ** 0.5 if len(prompts) > 1 else None
    return {name: float(prompts.mean()), f"{name}_error": error}


def _single(run: Path) -> dict[str, Any]:
    folder = RunFolder(run)
    if not folder.config.exists() or not folder.model.exists():
        raise ConfigError(f"{run}: no finished run; expected config.yaml and model/ of `multiref train`.")
    config = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    if config["regularizer"].get("kind") != "ReverseKL" or config["objective"]["kind"] != "preference":
        raise ConfigError(f"{run}: trained with {config['regularizer'].get('kind')}; the sweep is exact for reverse KL only.")
    used = [r for r in config["references"] if r["weight"] is None or r["weight"] > 0]
    if len(used) != 1:
        raise ConfigError(f"{run}: {len(used)} references; expected one (or weight 1 on one of them).")
    return {**config, "references": used}


def _same(runs: Sequence[Path], configs: Sequence[dict[str, Any]]) -> None:
    if len(runs) < 2:
        raise ConfigError("runs: expected at least two, one a reference.")
    for key in ("beta", "data"):
        if any(config[key] != configs[0][key] for config in configs):
            raise ConfigError(
                f"{key}: the runs differ ({', '.join(str(config[key]) for config in configs)}); the merge needs the same reward and β."
            )
