"""J* = β log Z from two sides: islands of particles, and Hölder's inequality."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multiref.decoding import sample as sample_optimum
from multiref.evaluation.yardstick import Interval, Yardstick
from multiref.models.sampling import sample
from multiref.models.spec import Generation
from multiref.references.local import local_reference
from multiref.weighting.intervals import islands_needed, log_mean_bounds


@dataclass(frozen=True)
class OptimumBounds:
    """(lower, upper) of J* as a mean over prompts, an estimate of each prompt's [P], and what is said of them."""

    interval: Interval
    estimates: Tensor
    lines: tuple[str, ...]


def bound_optimum(asked: Yardstick, delta: float) -> OptimumBounds:
    """Each side with confidence 1 − δ; the upper one shares its δ between the islands and Hölder's inequality."""
    beta, effort, reward_max = asked.beta, asked.effort, asked.reward_max
    draws = sample_optimum(
        asked.prompts, asked.refs, asked.regularizer, asked.reward, beta, method="smc", proposal="pool", n=effort.particles,
        islands=effort.islands, max_new_tokens=asked.generation.max_new_tokens, min_new_tokens=asked.generation.min_new_tokens,
        reward_max=reward_max, seed=effort.seed + 1,
    )  # fmt: skip
    islands = torch.stack([one.log_islands for one in draws])
    lower, _ = log_mean_bounds(islands, None, delta=delta)
    middle = float(draws.log_partition.mean())
    lines = [f"J* ≥ {beta * lower:.4g} (estimate {beta * middle:.4g}): proves regret ≥; needs only that rewards are numbers."]
    if reward_max is None:
        lines.append("J* ≤: refused without reward_max (regret ≤ is not proved).")
        return OptimumBounds((beta * lower, math.inf), beta * draws.log_partition, tuple(lines))
    found = {"reward_max alone": reward_max, "Hölder, Σ_k w_k β log E_{π_k} e^{r/β}": _holder(asked, delta / 2)}
    most = reward_max / beta
    needed = islands_needed(middle, most, prompts=len(asked.prompts), delta=delta / 2)
    if needed <= effort.islands:
        found["islands"] = beta * log_mean_bounds(islands, most, delta=delta / 2)[1]
    else:
        lines.append(
            f"J* ≤ from islands: refused, it needs about {needed:,.0f} of them a prompt (log(1/δ) e^(r_max/β)/Z, whatever "
            f"their variance), and there are {effort.islands}. Raise Effort.islands."
        )
    by, upper = min(found.items(), key=lambda one: one[1])
    lines.append(f"J* ≤ {upper:.4g} by {by}: proves regret ≤.")
    return OptimumBounds((beta * lower, upper), beta * draws.log_partition, tuple(lines))


def _holder(asked: Yardstick, delta: float) -> float:
    r"""Z ≤ ∏_k (E_{π_k} e^{r/β})^{w_k}: an upper bound of J* from completions of each reference, with confidence 1 − δ.

    Where `min_new_tokens` forbids early ends π_k is drawn without them, which makes no allowed completion rarer. A completion
    ends where the pool's ends, whatever else π_k would go on after.
    """
    total, effort, most = 0.0, asked.effort, float(asked.reward_max or 0.0)
    used = [(k, float(w)) for k, w in enumerate(asked.weights) if w > 0]
    generation = Generation(asked.generation.max_new_tokens, min_new_tokens=asked.generation.min_new_tokens)
    for k, weight in used:
        name = asked.refs.names[k]
        reference = local_reference(name, asked.refs.open(name))
        with reference.loaded() as model:
            dice = torch.Generator().manual_seed(effort.seed + 2 + k)
            given: Any = {"group": effort.samples, "generator": dice, "ends": asked.ends}
            rollouts = [sample(model, reference.tokenizer, [each], generation, **given)[0] for each in asked.prompts]
        logs = asked.rewards(rollouts) / asked.beta
        total += weight * asked.beta * log_mean_bounds(logs, most / asked.beta, delta=delta / len(used))[1]
    return total
