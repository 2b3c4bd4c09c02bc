"""Curves over weights without training each point, from one pool of samples, weights by importance: of K single-reference
policies after training, or of π* over β and weights before any, from draws of the references, trained runs beside it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor

from multiref.errors import ConfigError, EmptyPoolError
from multiref.evaluation import sample_each, score_samples
from multiref.models import Generation, LanguageModel, load
from multiref.models.sampling import Rollout
from multiref.references.scores import same_vocabulary
from multiref.regularizers import check_beta
from multiref.runs.base import Say
from multiref.runs.folder import RunFolder
from multiref.runs.prompts import Row, different, read_rows
from multiref.runs.strict import Strict
from multiref.training.online.rewards import as_rewards, reward_rollouts
from multiref.weighting import log_importance_weights
from multiref.weighting.particles import effective_size

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEW = 10  # effective samples: a prompt with fewer says little
MANY = 0.1  # of the prompts: a point with more of them below ten effective samples is grey


class SweepSettings(Strict):
    """points: weights on the first of two runs, from 0 to 1 (for more runs the vertices and the middle). samples: completions a
    prompt from each run's policy, of at most max_new_tokens. limit: how many prompts. name, split: of their data set."""

    points: int = Field(default=5, ge=2)
    samples: int = Field(default=8, gt=0)
    limit: int = Field(default=32, gt=0)
    max_new_tokens: int = Field(default=128, gt=0)
    seed: int = 0
    name: str | None = None
    split: str | None = None


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
    asked = read_prompts(prompts, settings, rewards)
    say(f"{settings.samples} samples of each of {len(models)} policies for {len(asked)} prompts.")
    samples = draw_samples(names, models, asked, settings, rewards)
    rows = [samples.point(weights) for weights in weight_grid(len(models), settings.points)]
    found = {"runs": [str(run) for run in runs], "points": rows}
    RunFolder(out).write("sweep.json", json.dumps(found, indent=1, ensure_ascii=False))
    for row in rows:
        say(sentence(row))
    return rows


@dataclass(frozen=True)
class Samples:
    """Completions of K models on B prompts, N = K·n of each prompt: what every point of a curve is made of.

    logps [K, B, N], lengths [B, N] in tokens; values {"reward": [B, N], and each reward's own where there are several}.
    """

    names: tuple[str, ...]
    logps: Tensor
    lengths: Tensor
    values: Mapping[str, Tensor]

    def point(self, weights: Sequence[float], beta: float | None = None) -> dict[str, Any]:
        """One point of the curve: every mean is Σ_i u_i v_i of a prompt's samples, averaged over prompts; `_error` its standard
        error over prompts. With β the samples are tilted by the reward, and J = β log Ẑ of π* is reported too."""
        tilt = None if beta is None else self.values.get("reward", torch.zeros_like(self.lengths)) / beta
        if tilt is not None and bool(tilt.isinf().any()):
            raise ConfigError(f"beta: a reward over β = {beta:g} is no finite number; take a larger β.")
        log_w = log_importance_weights(self.logps, torch.tensor(weights, dtype=torch.float64), tilt)
        if bool((log_w == -math.inf).all(-1).any()):
            raise EmptyPoolError(
                f"weights {', '.join(f'{w:.3g}' for w in weights)}: no completion of some prompt has mass, for some reference "
                "forbids each. Leave a reference out, or draw more samples."
            )
        u, ess = log_w.softmax(-1), effective_size(log_w)
        row: dict[str, Any] = {} if beta is None else {"beta": beta}
        row |= {
            "weights": dict(zip(self.names, weights)),
            "ess": float(ess.mean()),
            "ess_least": float(ess.min()),
            "thin": float((ess < FEW).double().mean()),
            "samples": u.shape[-1],
            "tokens": float((u * self.lengths).sum(-1).mean()),
        }
        for name, value in self.values.items():
            here = u * ~value.isnan()  # a reward may not apply to some completions
            row |= over_prompts(name, (here * value.nan_to_num()).sum(-1) / here.sum(-1))
        if beta is not None:
            row |= over_prompts("J", beta * (log_w.logsumexp(-1) - math.log(u.shape[-1])))
        return row


def over_prompts(name: str, values: Tensor) -> dict[str, float | None]:
    """[B] → its mean, and the standard error over the prompts of which it is known (not NaN)."""
    known = values[~values.isnan()]
    error = float(known.std()) / len(known) ** 0.5 if len(known) > 1 else None
    return {name: float(known.mean()) if len(known) else None, f"{name}_error": error}


def read_prompts(prompts: str | Path, settings: SweepSettings, rewards: Any = ()) -> list[Row]:
    """The first so many rows that differ."""
    rows = (row for _, row in read_rows(prompts, name=settings.name, split=settings.split))
    return list(islice(different(rows, as_rewards(rewards)), settings.limit))


def draw_samples(
    names: Sequence[str], models: Sequence[LanguageModel], rows: Sequence[Row], settings: SweepSettings, rewards: Any
) -> Samples:
    """`settings.samples` completions of each prompt from each model, scored by all of them and by the rewards."""
    same_vocabulary(list(names), [model.tokenizer.get_vocab() for model in models])
    seeds = [settings.seed + 104_729 * k for k in range(len(models))]
    drawn = [_drawn(model, rows, settings, seed) for model, seed in zip(models, seeds)]
    encoded = [[rollout.encoded() for rollout in each] for each in drawn]
    logps = torch.stack([torch.cat([score_samples(model, items) for items in encoded], -1) for model in models])
    found = [rewarded(rewards, rows, each) for each in drawn]
    values = {name: torch.cat([each[name] for each in found], -1) for name in found[0]}
    return Samples(tuple(names), logps, torch.cat(list(map(_lengths, drawn)), -1), values)


def _drawn(model: LanguageModel, rows: Sequence[Row], settings: SweepSettings, seed: int) -> list[Rollout]:
    prompts, generation = [row["prompt"] for row in rows], Generation(settings.max_new_tokens)
    return sample_each(model, prompts, generation, group=settings.samples, seed=seed)


def _lengths(rollouts: Sequence[Rollout]) -> Tensor:
    """[B, N] tokens."""
    return torch.tensor([[float(len(ids)) for ids in each.completion_ids] for each in rollouts], dtype=torch.float64)


def sentence(row: Mapping[str, Any]) -> str:
    """A point of the curve, in one line."""
    shown = ", ".join(f"{name} {value:.3f}" for name, value in row["weights"].items())
    shown = f"β {row['beta']:g}, {shown}" if "beta" in row else shown
    what = f"effective sample size {row['ess']:.1f} of {row['samples']}" if "ess" in row else str(row["run"])
    for name in ("reward", "J"):
        if name in row:
            error = row[f"{name}_error"]
            what += f", {name} {row[name]:.3f}" + ("" if error is None else f" ± {error:.3f}")
    grey = " (grey: too few effective samples)" if row.get("grey") else ""
    return f"{shown}: {what}, {row['tokens']:.1f} tokens a completion{grey}"


def rewarded(rewards: Any, rows: Sequence[Row], rollouts: Sequence[Rollout]) -> dict[str, Tensor]:
    """{"reward": [B, n], and each reward's own where there are several} of the completions; empty without rewards."""
    each_one = as_rewards(rewards)
    if not each_one:
        return {}
    total, parts = reward_rollouts(each_one, rows, rollouts, len(rollouts[0].completions))
    values = {"reward": total} | ({f"rewards/{name}": value for name, value in parts.items()} if len(parts) > 1 else {})
    return {name: value.reshape(len(rollouts), -1) for name, value in values.items()}


def _finished(run: str | Path) -> dict[str, Any]:
    """The settings of a finished run. ConfigError for a folder that holds none."""
    folder = RunFolder(run)
    settings = folder.settings()
    if not folder.model.exists():
        raise ConfigError(f"{run}: no finished run; expected model/ of `multiref train`.")
    return settings


def _mergeable(runs: Sequence[str | Path]) -> list[str]:
    """The name of each run's one reference, with the run where two are called alike. ConfigError for runs whose optima do not
    merge."""
    if len(runs) < 2:
        raise ConfigError("runs: expected at least two, one a reference.")
    configs, names = [], []
    for run in runs:
        config = _finished(run)
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
    for key in ("beta", "data", "objective", "privacy"):
        if any(config.get(key) != configs[0].get(key) for config in configs):
            differ = ", ".join(str(config.get(key)) for config in configs)
            raise ConfigError(f"{key}: the runs differ ({differ}); the merge needs the same reward and β.")
    return names if len(set(names)) == len(names) else [f"{name} of {run}" for name, run in zip(names, runs)]


# ---- before any training ----


def sweep_untrained(
    references: Mapping[str, str],
    runs: Sequence[str | Path],
    prompts: str | Path,
    out: str | Path,
    settings: SweepSettings,
    *,
    betas: Sequence[float],
    rewards: Any = (),
    say: Say = print,
) -> list[dict[str, Any]]:
    """Writes sweep.json and, for two references, a picture; returns the points: π* at every β and weights, with its effective
    sample size, reward and J = β log Z, and each run's own reward and J at its β and weights.

    A point is grey where more than a tenth of the prompts have fewer than ten effective samples.

    Args:
        references: name → folder or hub id, of one vocabulary. runs: finished runs whose references are among them.
        betas: of π* ∝ ∏_k π_k^{w_k} e^{r/β}. Without rewards the points are the escorts, one for each weights.
    """
    for beta in betas:
        check_beta(beta)
    described = [_described(run, list(references)) for run in runs]
    names, asked = tuple(references), read_prompts(prompts, settings, rewards)
    models = [load(path) for path in references.values()]
    say(f"{settings.samples} samples of each of {len(models)} references for {len(asked)} prompts.")
    samples = draw_samples(names, models, asked, settings, rewards)
    tilted = betas if samples.values else (1.0,)
    points = [samples.point(weights, beta) for beta in tilted for weights in weight_grid(len(names), settings.points)]
    rows = [{**row, "grey": row["thin"] > MANY} for row in points]
    beside = [_trained(run, *each, dict(zip(names, models)), asked, settings, rewards) for run, each in zip(runs, described)]
    folder = RunFolder(out)
    folder.write("sweep.json", json.dumps({"points": rows, "runs": beside}, indent=1, ensure_ascii=False))
    if len(names) == 2:
        from multiref.report.figures import save

        save(_picture(rows, beside, names[0]), folder.path / "sweep")
    for row in [*rows, *beside]:
        say(sentence(row))
    return [*rows, *beside]


def _described(run: str | Path, names: Sequence[str]) -> tuple[float, dict[str, float]]:
    """β and weights of a finished run. ConfigError for one that has other references, or none of these settings."""
    config = _finished(run)
    kind, used = config.get("regularizer", {}).get("kind"), config.get("references", [])
    if kind != "ReverseKL" or "beta" not in config or config.get("adaptive_beta"):
        asked = "adaptive_beta" if config.get("adaptive_beta") else kind or config.get("task")
        raise ConfigError(f"{run}: trained with {asked}; π* ∝ P_0 e^{{r/β}} is that of reverse KL and one β.")
    if strange := [each["name"] for each in used if each["name"] not in names]:
        raise ConfigError(f"{run}: its reference {strange[0]!r} is none of {', '.join(names)}; name them as the run does.")
    weights = {each["name"]: each["weight"] for each in used}
    equal = all(weight is None for weight in weights.values())
    each = {name: 1 / len(weights) if equal else weight or 0.0 for name, weight in weights.items()}
    return float(config["beta"]), {name: each.get(name, 0.0) for name in names}


def _trained(
    run: str | Path,
    beta: float,
    weights: Mapping[str, float],
    models: Mapping[str, LanguageModel],
    rows: Sequence[Row],
    settings: SweepSettings,
    rewards: Any,
) -> dict[str, Any]:
    """A run's own samples on the same prompts: reward, length, and J = E[r − β Σ_k w_k log π/π_k]."""
    policy = load(RunFolder(run).model)
    same_vocabulary([str(run), *models], [each.tokenizer.get_vocab() for each in (policy, *models.values())])
    rollouts = _drawn(policy, rows, settings, settings.seed)
    items = [rollout.encoded() for rollout in rollouts]
    own = score_samples(policy, items)
    gap = sum(weight * (own - score_samples(models[name], items)) for name, weight in weights.items() if weight)
    values, tokens = rewarded(rewards, rows, rollouts), float(_lengths(rollouts).mean())
    row: dict[str, Any] = {"run": str(run), "beta": beta, "weights": dict(weights), "tokens": tokens}
    for name, value in values.items():
        row |= over_prompts(name, value.nanmean(-1))
    return row | over_prompts("J", (values.get("reward", torch.zeros_like(own)) - beta * gap).mean(-1))


def _picture(rows: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]], first: str) -> "Figure":
    """Reward (J without one) over the weight of the first reference, a line for each β; grey: too few effective samples."""
    from multiref.report.figures import GREY, MARKERS, PALETTE, canvas, finish, mark
    from multiref.report.noise import Measure

    what = "reward" if "reward" in rows[0] else "J"
    figure, axes = canvas(6.4, 4.6)
    betas = list(dict.fromkeys(row["beta"] for row in rows))
    for i, beta in enumerate(betas):
        line = [row for row in rows if row["beta"] == beta]
        colour, marker = PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]
        x, y = [row["weights"][first] for row in line], [row[what] for row in line]
        axes.plot(x, y, color=colour, linewidth=1.0, label=f"π*, β {beta:g}")
        for row in line:
            place = Measure(row["weights"][first], None), Measure(row[what], row[f"{what}_error"])
            mark(axes, *place, color=GREY if row["grey"] else colour, marker=marker, alpha=0.4 if row["grey"] else 1.0)
    for i, row in enumerate(runs):
        place = Measure(row["weights"][first], None), Measure(row[what], row[f"{what}_error"])
        mark(axes, *place, color=PALETTE[i % len(PALETTE)], marker="*", markersize=12, label=f"{row['run']}, β {row['beta']:g}")
    return finish(figure, axes, f"weight of {first}", what, "grey: too few effective samples")
