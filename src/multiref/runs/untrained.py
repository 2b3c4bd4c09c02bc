"""The curve of π* over β and weights without training: one scored set of draws of the references, re-weighted; trained runs
beside it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from multiref.errors import ConfigError
from multiref.evaluation import sample_each, score_samples
from multiref.models import Generation, LanguageModel, load
from multiref.references.scores import same_vocabulary
from multiref.regularizers import check_beta
from multiref.runs.base import Say
from multiref.runs.folder import RunFolder
from multiref.runs.sweeping import SweepSettings, draw_samples, over_prompts, read_texts, rewarded, sentence, weight_grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MANY = 0.1  # of the prompts: a point with more of them below ten effective samples is grey


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
    names, texts = tuple(references), read_texts(prompts, settings.limit)
    models = [load(path) for path in references.values()]
    say(f"{settings.samples} samples of each of {len(models)} references for {len(texts)} prompts.")
    samples = draw_samples(names, models, texts, settings, rewards)
    tilted = betas if samples.values else (1.0,)
    points = [samples.point(weights, beta) for beta in tilted for weights in weight_grid(len(names), settings.points)]
    rows = [{**row, "grey": row["thin"] > MANY} for row in points]
    beside = [_trained(run, *each, dict(zip(names, models)), texts, settings, rewards) for run, each in zip(runs, described)]
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
    folder = RunFolder(run)
    config = folder.settings()
    if not folder.model.exists():
        raise ConfigError(f"{run}: no finished run; expected model/ of `multiref train`.")
    kind, used = config.get("regularizer", {}).get("kind"), config.get("references", [])
    if kind != "ReverseKL" or "beta" not in config:
        raise ConfigError(
            f"{run}: trained with {kind or config.get('task')}; π* ∝ P_0 e^{{r/β}} is that of reverse KL and a β."
        )
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
    texts: Sequence[Any],
    settings: SweepSettings,
    rewards: Any,
) -> dict[str, Any]:
    """A run's own samples on the same prompts: reward, length, and J = E[r − β Σ_k w_k log π/π_k]."""
    policy = load(RunFolder(run).model)
    same_vocabulary([str(run), *models], [each.tokenizer.get_vocab() for each in (policy, *models.values())])
    rollouts = sample_each(policy, texts, Generation(settings.max_new_tokens), group=settings.samples, seed=settings.seed)
    items = [rollout.encoded() for rollout in rollouts]
    own = score_samples(policy, items)
    gap = sum(weight * (own - score_samples(models[name], items)) for name, weight in weights.items() if weight)
    lengths = torch.tensor([[float(len(ids)) for ids in each.completion_ids] for each in rollouts], dtype=torch.float64)
    values = rewarded(rewards, texts, items, policy.tokenizer)
    row: dict[str, Any] = {"run": str(run), "beta": beta, "weights": dict(weights), "tokens": float(lengths.mean())}
    for name, value in values.items():
        row |= over_prompts(name, value.mean(-1))
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
