"""`certificate`: how far a policy is from the optimum that it was trained for, with confidence, and what each line proves."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from statistics import NormalDist
from typing import Any

from torch import Tensor

from multiref.decoding.request import check_strength
from multiref.errors import ArgumentError
from multiref.evaluation.optimum_bounds import OptimumBounds, bound_optimum
from multiref.evaluation.yardstick import Effort, Interval, Yardstick
from multiref.models import LanguageModel, load
from multiref.models.spec import Generation
from multiref.references.collection import References
from multiref.regularizers import ReverseKL
from multiref.weighting.intervals import log_mean_bounds

GENERATION = Generation(64)


@dataclass(frozen=True)
class Certificate:
    """J and J* in units of the reward, means over the given prompts; (lower, upper), infinite where nothing is proved.

    value: J(π). optimum: J* = β log Z. regret: J* − J(π). share: (J − J_base)/(J* − J_base), None where refused.
    population: "value", "optimum" and "regret" for prompts like those given: the intervals above, widened by the spread over
        prompts (asymptotic in their number); None for a single prompt.
    lines: what was found, in words, each saying which of regret ≤ and regret ≥ it proves.
    """

    value: Interval
    optimum: Interval
    regret: Interval
    share: Interval | None
    population: Mapping[str, Interval] | None
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines)


def certificate(
    policy: Any,
    refs: Any,
    regularizer: ReverseKL,
    reward: Callable[..., Any],
    beta: float,
    prompts: Sequence[Any],
    baseline: Any = None,
    *,
    reward_max: float | None = None,
    log_ratio_max: float | None = None,
    delta: float = 0.05,
    generation: Generation = GENERATION,
    effort: Effort | None = None,
) -> Certificate:
    r"""Certified with probability 1 − δ for these prompts: J(π), J*, their regret, and π's share of what a baseline leaves.

        J* = (1/m) Σ_x β log Z_x:   islands of particles from the pure pool, each in [0, e^{r_max/β}] and independent
        J* ≤ Σ_k w_k β log E_{π_k} e^{r/β}:   Hölder's inequality, from completions of each reference
        J(π) = E[r − β log π/P_0]:  the mean over independent completions

    Args:
        policy, baseline: a `LanguageModel` or its path, of the references' vocabulary.
        refs: a `References`, or what makes one. regularizer: reverse KL. reward: function(prompts=…, completions=…) → numbers.
        beta: strength, in units of the reward. delta: chance that a line fails. effort: how much is drawn; None: `Effort()`.
        generation: how both are sampled when they are served: temperature and cuts are then part of the policy whose J is
            certified. J* is the optimum among completions of that length.
        reward_max: declares 0 ≤ r ≤ reward_max. Without it the lower side of J* is certified and the upper one refused.
        log_ratio_max: declares |log π/P_0| ≤ this of every completion. Without it the lines about J are asymptotic, and the KL
            is summed over the vocabulary.

    Errors: ArgumentError for what cannot work, a reward above the declared maximum among it; VocabularyMismatch.

    Reference: docs/decoding.md (DERIVED).
    """
    if not isinstance(regularizer, ReverseKL):
        raise ArgumentError(f"regularizer: J* = β log Z is reverse KL's; found {type(regularizer).__name__}.")
    if not isinstance(delta, Real) or not 0 < delta < 1:
        raise ArgumentError(f"delta: expected a number between 0 and 1, found {delta!r}.")
    if log_ratio_max is not None and not (isinstance(log_ratio_max, Real) and 0 < log_ratio_max < math.inf):
        raise ArgumentError(f"log_ratio_max: expected a positive, finite number, or None, found {log_ratio_max!r}.")
    beta = check_strength(beta)
    if not isinstance(generation, Generation):
        raise ArgumentError(f"generation: expected a Generation, found {generation!r}.")
    if not isinstance(effort, Effort | None):
        raise ArgumentError(f"effort: expected an Effort, found {effort!r}.")
    named = {"π": policy} if baseline is None else {"π": policy, "baseline": baseline}
    for name, one in named.items():
        if not isinstance(one, (LanguageModel, str, os.PathLike)):
            raise ArgumentError(f"{name}: expected a LanguageModel or its path, found {one!r}.")
    if not callable(reward):
        raise ArgumentError(f"reward: expected a function(prompts=…, completions=…) → numbers, found {reward!r}.")
    prompts = prompts if isinstance(prompts, str) else list(prompts)
    collection = refs if isinstance(refs, References) else References(refs)
    asked = Yardstick(collection, regularizer, reward, beta, prompts, generation, reward_max, log_ratio_max, effort or Effort())
    each = delta / (8 if baseline is not None else 4)  # both sides of J*, of J, of J_base and the paired difference
    optimum = bound_optimum(asked, each)
    loaded = {name: one if isinstance(one, LanguageModel) else load(one) for name, one in named.items()}
    values = {name: asked.values(one, name) for name, one in loaded.items()}
    value, regret, lines = _regret(values["π"], optimum.interval, asked.room, each)
    share, said = (None, ()) if baseline is None else _share(values, optimum, regret, asked.room, each)
    found = {"value": value, "optimum": optimum.interval, "regret": regret}
    population, outside = _population(found, values["π"].mean(1), optimum.estimates, delta)
    head = f"With probability {1 - delta:.12g}, for these {len(prompts)} prompts (not for prompts like them):"
    told = (head, *optimum.lines, *lines, *said, *outside)
    return Certificate(value, optimum.interval, regret, share, population, told)


def _regret(values: Tensor, optimum: Interval, room: Interval | None, delta: float) -> tuple[Interval, Interval, list[str]]:
    """J(π), J* − J(π), and what is said of them."""
    value = _interval(values, room, delta)
    kind = "certified" if room is not None else "asymptotic: no log_ratio_max or no reward_max; KL summed over the vocabulary"
    regret = (max(optimum[0] - value[1], 0.0), optimum[1] - value[0])
    rests = "" if room is not None else " As far as J's asymptotic interval holds."
    return value, regret, [
        f"J(π) in [{value[0]:.4g}, {value[1]:.4g}] ({kind}; mean {float(values.mean()):.4g} of {values.numel():,}).",
        f"regret ≥ {regret[0]:.4g}: from J* above its lower and J(π) below its upper end.{rests}",
        f"regret ≤ {regret[1]:.4g}: from J* below its upper and J(π) above its lower end.{rests}"
        if math.isfinite(regret[1])
        else "regret ≤: refused, for the upper side of J* is.",
    ]  # fmt: skip


def _population(
    found: Mapping[str, Interval], values: Tensor, optima: Tensor, delta: float
) -> tuple[Mapping[str, Interval] | None, tuple[str, ...]]:
    """Each interval widened by the spread of its figure over prompts, [P] of J(π) and of J*."""
    if len(values) < 2:
        return None, ()
    each = {"value": values, "optimum": optima, "regret": optima - values}
    reach = {name: NormalDist().inv_cdf(1 - delta / 6) * float(one.std()) / math.sqrt(len(one)) for name, one in each.items()}
    wide = {name: (low - reach[name], high + reach[name]) for name, (low, high) in found.items()}
    wide["regret"] = (max(wide["regret"][0], 0.0), wide["regret"][1])
    shown = ", ".join(f"{name} in [{low:.4g}, {high:.4g}]" for name, (low, high) in wide.items())
    said = (
        f"For prompts like these (outer intervals, asymptotic in {len(values)} prompts; another {delta:.3g} may fail): {shown}."
    )
    return wide, (said,)


def _interval(values: Tensor, room: Interval | None, delta: float) -> Interval:
    """Of the mean over prompts of E, two sides with δ each: betting where the values have a known range, else normal."""
    mean = float(values.mean())
    if room is None:
        spread = float(values.var(-1).mean()) / values.numel()
        reach = NormalDist().inv_cdf(1 - delta) * math.sqrt(spread)
        return mean - reach, mean + reach
    # the mean over prompts of one completion each: independent over the draws, in the same range
    low, high = room
    rows = ((values.mean(0) - low) / (high - low)).clamp_min(1e-300)
    bottom, _ = log_mean_bounds(rows.log()[None], None, delta=delta)
    top, _ = log_mean_bounds((1 - rows).clamp_min(1e-300).log()[None], None, delta=delta)
    return low + (high - low) * math.exp(bottom), high - (high - low) * math.exp(top)


def _share(
    values: Mapping[str, Tensor], optimum: OptimumBounds, regret: Interval, room: Interval | None, delta: float
) -> tuple[Interval | None, tuple[str, ...]]:
    """Of what the baseline leaves to gain, from the paired difference of J and from the regret, whichever says more: both are
    divided by J* − J_base."""
    base = _interval(values["baseline"], room, delta)
    wide = None if room is None else (room[0] - room[1], room[1] - room[0])
    gain = _interval(values["π"] - values["baseline"], wide, delta)
    least, most = optimum.interval[0] - base[1], optimum.interval[1] - base[0]
    if least <= 0:
        return None, (
            f"share: refused, for J* − J_base may be {least:.4g}. {_lacking(values['baseline'], optimum, room, delta)}",
        )
    direct = (gain[0] / (most if gain[0] >= 0 else least), gain[1] / (least if gain[1] >= 0 else most))
    left = (1 - regret[1] / least, 1 - regret[0] / most)  # the share is 1 − regret/(J* − J_base), so at most 1
    found = (max(direct[0], left[0]), min(direct[1], left[1]))
    return found, (f"share of J* − J_base that π gains: between {found[0]:.3g} and {found[1]:.3g}.",)


def _lacking(values: Tensor, optimum: OptimumBounds, room: Interval | None, delta: float) -> str:
    r"""What would tell J* − J_base from 0: how many completions, for the lower end of J* that there is.

        (b − J_base) log(1/δ)/n + s √(2 log(1/δ)/n) < gap = lower end of J* − J_base,     b: the room's upper end

    The first term is the price of a bounded range (no bet is above 1), the second that of the spread s.
    """
    mean, spread, prompts = float(values.mean()), math.sqrt(float(values.var(-1).mean())), len(values)
    gap, price = optimum.interval[0] - mean, math.log(1 / delta)
    if gap <= 0:
        better = float(optimum.estimates.mean()) > mean
        return (
            "Raise Effort.islands." if better else "The baseline seems to be as good as the optimum: there is no share to tell."
        )
    if room is None:
        needed = (NormalDist().inv_cdf(1 - delta) * spread / gap) ** 2 / prompts
    else:
        spread /= math.sqrt(prompts)  # of the mean over prompts
        linear, square = spread * math.sqrt(2 * price), (room[1] - mean) * price
        needed = (2 * square / (math.sqrt(linear**2 + 4 * square * gap) - linear)) ** 2
    return (
        f"It takes about {math.ceil(needed):,} completions a prompt, and there are {values.shape[1]:,}: raise Effort.samples"
        + ("." if room is None else ", or declare a smaller log_ratio_max.")
    )
