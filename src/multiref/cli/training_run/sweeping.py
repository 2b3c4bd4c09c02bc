"""The curve over weights after training: K single-reference policies, one pool of samples, weights by importance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from multiref.cli.training_run.folder import RunFolder
from multiref.errors import ConfigError

__all__ = ["importance_weights", "sweep", "weight_grid"]


def importance_weights(log_policies: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    r"""[K, B, K·n], [K] → normalised weights [B, K·n] and effective sample sizes [B].

    Samples of prompt b: n from each of the K policies, so their law is the mixture q = (1/K) Σ_k π_k. The target is the geometric mean:

        u_i ∝ Π_k π_k(y_i)^{w_k} / q(y_i),     ESS = (Σ u)² / Σ u²

    Self-normalised: biased by O(1/n), consistent. At a vertex it is that policy, with u ≤ K before normalisation.

    Reference: theory 2.1(c) (DERIVED) for the target; balance heuristic, Veach and Guibas, 1995.
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
) -> list[dict[str, Any]]:
    """Writes sweep.json; returns its rows: weights, effective sample size, KL to each reference's run, and mean length."""
    from multiref.data import read_pairs
    from multiref.evaluation.sampled import drawn, scored
    from multiref.models import load
    from multiref.models.encoding import Encoded
    from multiref.references.scores import same_vocabulary

    configs = [_single(run) for run in runs]
    _same(runs, configs)
    models = [load(RunFolder(run).model) for run in runs]
    same_vocabulary([str(run) for run in runs], [model.tokenizer.get_vocab() for model in models])
    texts = list(dict.fromkeys(pair.prompt for pair in read_pairs(prompts)))[:limit]
    say(f"{samples} samples of each of {len(models)} policies for {len(texts)} prompts.")
    items = []
    for n, text in enumerate(texts):
        each = [drawn(model, text, samples, max_new_tokens, seed + 7_919 * n + 104_729 * k) for k, model in enumerate(models)]
        completions = tuple(ids for _, row in each for ids in row)
        items.append(Encoded(each[0][0], completions, (False,) * len(completions)))
    logps = torch.stack([scored(model.model, items) for model in models]).double()
    lengths = torch.tensor([[float(len(ids)) for ids in item.completions] for item in items], dtype=torch.float64)
    rows = [_point(logps, lengths, weights, configs) for weights in weight_grid(len(models), points)]
    out.mkdir(parents=True, exist_ok=True)
    RunFolder(out).write(
        "sweep.json", json.dumps({"runs": [str(run) for run in runs], "points": rows}, indent=1, ensure_ascii=False)
    )
    for row in rows:
        shown = ", ".join(f"{name} {value:.3f}" for name, value in row["weights"].items())
        say(f"{shown}: effective sample size {row['ess']:.1f} of {row['samples']}, {row['tokens']:.1f} tokens a completion")
    return rows


def _point(logps: Tensor, lengths: Tensor, weights: tuple[float, ...], configs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    u, ess = importance_weights(logps, torch.tensor(weights, dtype=torch.float64))
    names = [config["references"][0]["name"] for config in configs]
    return {
        "weights": dict(zip(names, weights)),
        "ess": float(ess.mean()),
        "ess_least": float(ess.min()),
        "samples": u.shape[-1],
        "tokens": float((u * lengths).sum(-1).mean()),
    }


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
