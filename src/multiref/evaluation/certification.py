"""`certificate`: how far a policy is from the optimum that it was trained for, with confidence, and what each line proves."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multiref._logspace import check_weights, weighted_sum
from multiref.decoding import sample
from multiref.errors import ArgumentError
from multiref.evaluation.samples import sample_each, score_samples
from multiref.models import LanguageModel, load
from multiref.models.spec import Generation
from multiref.references.collection import References
from multiref.references.rollouts import RolloutScorer
from multiref.regularizers import ReverseKL
from multiref.weighting.intervals import islands_needed, log_mean_bounds

Interval = tuple[float, float]
GENERATION = Generation(64)


@dataclass(frozen=True)
class Effort:
    """What is drawn for each prompt: islands of particles for J*, and completions of every policy. seed: of all of it."""

    islands: int = 64
    particles: int = 32
    samples: int = 64
    seed: int = 0


@dataclass(frozen=True)
class Certificate:
    """J and J* in units of the reward, means over the given prompts; (lower, upper), infinite where nothing is proved.

    value: J(π). optimum: J* = β log Z. regret: J* − J(π). share: (J − J_base)/(J* − J_base), None where refused.
    lines: what was found, in words, each saying which of regret ≤ and regret ≥ it proves.
    """

    value: Interval
    optimum: Interval
    regret: Interval
    share: Interval | None
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
        J(π) = E[r − β log π/P_0]:  the mean over independent completions, one a term (k1)

    Args:
        policy, baseline: a `LanguageModel` or its path, of the references' vocabulary.
        reward: function(prompts=…, completions=…) → numbers.
        generation: max_new_tokens; sampling as served. Other temperatures and cuts are refused: log π would be another's.
        reward_max: declares 0 ≤ r ≤ reward_max. Without it the lower side of J* is certified and the upper one refused.
        log_ratio_max: declares |log π/P_0| ≤ this of every completion; without it the lines about J are asymptotic.

    Errors: ArgumentError for what cannot work, a reward above the declared maximum among it.

    Reference: docs/decoding.md (DERIVED).
    """
    if (generation.temperature, generation.top_k, generation.top_p) != (1, 0, 1):
        raise ArgumentError(f"generation: certified is the policy as it is, temperature 1 and nothing cut; found {generation}.")
    if not isinstance(regularizer, ReverseKL):
        raise ArgumentError(f"regularizer: J* = β log Z is reverse KL's; found {type(regularizer).__name__}.")
    if not 0 < delta < 1:
        raise ArgumentError(f"delta: expected a number between 0 and 1, found {delta}.")
    effort, collection = effort or Effort(), refs if isinstance(refs, References) else References(refs)
    each = delta / (8 if baseline is not None else 4)  # both sides of J*, of J, of J_base and the paired difference
    asked = _Asked(collection, regularizer, reward, beta, prompts, generation, reward_max, log_ratio_max, effort)
    optimum, lines = _optimum(asked, each)
    policies = {"π": policy} if baseline is None else {"π": policy, "baseline": baseline}
    loaded = {name: one if isinstance(one, LanguageModel) else load(one) for name, one in policies.items()}
    values = {name: _values(one, asked) for name, one in loaded.items()}
    room = None if log_ratio_max is None or reward_max is None else (-beta * log_ratio_max, reward_max + beta * log_ratio_max)
    value = _interval(values["π"], room, each)
    kind = "asymptotic: no log_ratio_max or no reward_max" if room is None else "certified"
    lines.append(
        f"J(π) in [{value[0]:.4g}, {value[1]:.4g}] ({kind}; mean {float(values['π'].mean()):.4g} of {values['π'].numel():,})."
    )
    regret = (max(optimum[0] - value[1], 0.0), optimum[1] - value[0])
    rests = "" if room is not None else " As far as J's asymptotic interval holds."
    lines.append(f"regret ≥ {regret[0]:.4g}: from J* above its lower and J(π) below its upper end.{rests}")
    lines.append(
        f"regret ≤ {regret[1]:.4g}: from J* below its upper and J(π) above its lower end.{rests}"
        if math.isfinite(regret[1])
        else "regret ≤: refused, for the upper side of J* is."
    )
    share = None
    if baseline is not None:
        share, said = _share(values, optimum, room, each)
        lines.append(said)
    head = f"With probability {1 - delta:.3g}, for these {len(prompts)} prompts (not for prompts like them):"
    return Certificate(value, optimum, regret, share, (head, *lines))


@dataclass(frozen=True)
class _Asked:
    """The objective, its prompts, and what is declared of both."""

    refs: References
    regularizer: ReverseKL
    reward: Callable[..., Any]
    beta: float
    prompts: Sequence[Any]
    generation: Generation
    reward_max: float | None
    log_ratio_max: float | None
    effort: Effort


def _optimum(asked: _Asked, delta: float) -> tuple[Interval, list[str]]:
    """J*, each side with confidence 1 − δ, and what is said of it."""
    beta, effort, reward_max = asked.beta, asked.effort, asked.reward_max
    draws = sample(
        asked.prompts, asked.refs, asked.regularizer, asked.reward, beta, method="smc", proposal="pool", n=effort.particles,
        islands=effort.islands, max_new_tokens=asked.generation.max_new_tokens, min_new_tokens=asked.generation.min_new_tokens,
        reward_max=reward_max, seed=effort.seed + 1,
    )  # fmt: skip
    islands = torch.stack([one.log_islands for one in draws])
    most = None if reward_max is None else reward_max / beta
    lower, upper = log_mean_bounds(islands, most, delta=delta)
    middle = float(draws.log_partition.mean())
    lines = [f"J* ≥ {beta * lower:.4g} (estimate {beta * middle:.4g}): proves regret ≥; needs only that rewards are numbers."]
    needed = math.inf if most is None else islands_needed(middle, most, prompts=len(asked.prompts), delta=delta)
    if most is None:
        upper = math.inf
        lines.append("J* ≤: refused without reward_max (regret ≤ is not proved).")
    elif needed > effort.islands:
        upper = most
        lines.append(
            f"J* ≤ {beta * upper:.4g} is reward_max alone: a sampled upper side needs about {needed:,.0f} islands a prompt "
            f"(log(1/δ) e^(r_max/β)/Z, whatever their variance), and there are {effort.islands}. Raise Effort.islands."
        )
    else:
        lines.append(f"J* ≤ {beta * upper:.4g}: proves regret ≤.")
    return (beta * lower, beta * upper), lines


def _values(policy: LanguageModel, asked: _Asked) -> Tensor:
    """[prompts, samples]: r − β log(π/P_0) of independent completions."""
    refs, effort, reward_max, log_ratio_max = asked.refs, asked.effort, asked.reward_max, asked.log_ratio_max
    rollouts = sample_each(policy, asked.prompts, asked.generation, group=effort.samples, seed=effort.seed)
    own = score_samples(policy, [rollout.encoded() for rollout in rollouts])
    scores = RolloutScorer(refs, policy.tokenizer).completions(rollouts).view(len(refs.names), *own.shape)
    ratio = own - weighted_sum(scores, check_weights(asked.regularizer.weights, len(refs.names))[:, None, None])
    if log_ratio_max is not None and float(ratio.abs().max()) > log_ratio_max:
        found = float(ratio.abs().max())
        raise ArgumentError(f"log_ratio_max is {log_ratio_max:g}, and a completion has |log π/P_0| = {found:.4g}.")
    answers = (asked.reward(prompts=[r.prompt] * effort.samples, completions=list(r.completions)) for r in rollouts)
    earned = torch.tensor([[float(value) for value in row] for row in answers], dtype=torch.float64)
    if bool(earned.isnan().any()):
        raise ArgumentError("reward: found NaN for a completion of the policy.")
    if reward_max is not None and not 0 <= float(earned.min()) <= float(earned.max()) <= reward_max:
        seen = f"[{float(earned.min()):g}, {float(earned.max()):g}]"
        raise ArgumentError(f"reward_max declares rewards in [0, {reward_max:g}], and the policy's completions have {seen}.")
    return earned - asked.beta * ratio


def _interval(values: Tensor, room: Interval | None, delta: float) -> Interval:
    """Of the mean over prompts of E, two sides with δ each: betting where the values have a known range, else normal."""
    mean = float(values.mean())
    if room is None:
        spread = float(values.var(-1).mean()) / values.numel()
        reach = math.sqrt(2.0) * float(torch.erfinv(torch.tensor(1 - 2 * delta, dtype=torch.float64))) * math.sqrt(spread)
        return mean - reach, mean + reach
    # the mean over prompts of one completion each: independent over the draws, in the same range
    low, high = room
    rows = ((values.mean(0) - low) / (high - low)).clamp_min(1e-300)
    bottom, _ = log_mean_bounds(rows.log()[None], None, delta=delta)
    top, _ = log_mean_bounds((1 - rows).clamp_min(1e-300).log()[None], None, delta=delta)
    return low + (high - low) * math.exp(bottom), high - (high - low) * math.exp(top)


def _share(values: Mapping[str, Tensor], optimum: Interval, room: Interval | None, delta: float) -> tuple[Interval | None, str]:
    """Of what the baseline leaves to gain: from the paired difference of J and from J* − J_base."""
    base = _interval(values["baseline"], room, delta)
    wide = None if room is None else (room[0] - room[1], room[1] - room[0])
    gain = _interval(values["π"] - values["baseline"], wide, delta)
    least, most = optimum[0] - base[1], optimum[1] - base[0]
    if least <= 0:
        return None, f"share: refused, for J* − J_base may be {least:.4g}: the baseline is not surely below the optimum."
    low = gain[0] / (most if gain[0] >= 0 else least)
    found = (low if math.isfinite(low) else 0.0, gain[1] / (least if gain[1] >= 0 else most))
    return found, f"share of J* − J_base that π gains: between {found[0]:.3g} and {min(found[1], 1.0):.3g}."
