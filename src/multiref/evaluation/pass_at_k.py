"""Right or wrong, and how good on average: pass@k and mean reward of several policies on the same prompts, intervals by
bootstrap over prompts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from multiref.data.gsm8k import pass_at_k, pass_rate
from multiref.errors import ArgumentError

Interval = tuple[float, float, float]


def bootstrap_interval(values: Tensor, *, resamples: int = 2000) -> Interval:
    """[P] → (mean, low, high): 95 % percentile bootstrap over prompts, which are what a conclusion is to hold beyond.

    NaN bounds for a single prompt, and where all values are one, for resampling them says nothing of their spread.
    """
    if values.ndim != 1 or not len(values):
        raise ArgumentError(f"bootstrap: expected one value a prompt, found an array of shape {tuple(values.shape)}.")
    mean = float(values.double().mean())
    if bool((values == values[0]).all()):
        return mean, float("nan"), float("nan")
    draws = torch.randint(len(values), (resamples, len(values)), generator=torch.Generator().manual_seed(0))
    means = values.double()[draws].mean(1)
    between = "linear" if bool(means.isfinite().all()) else "nearest"  # between −∞ and a number there is nothing
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64), interpolation=between).tolist()
    return mean, low, high


@dataclass(frozen=True)
class PassAtK:
    """Policies under one yardstick: [P, n] per policy, n sampled completions of each of the same P prompts.

    Attributes:
        rewards: {policy: {reward's name: [P, n]}}.
        correct: {policy: [P, n] bool, or NaN where that is not known}, or nothing where no reward says right or wrong.
        settings: temperature, samples, seed, …: printed with every result.
        measured: {metric: [policies, P]} of what else is known, NaN where it is not.
    """

    rewards: Mapping[str, Mapping[str, Tensor]]
    correct: Mapping[str, Tensor]
    settings: Mapping[str, Any]
    measured: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def policies(self) -> tuple[str, ...]:
        """Their names, in the order given."""
        return tuple(self.rewards)

    def values(self, ks: Sequence[int]) -> dict[str, Tensor]:
        """{metric: [policies, P]}: "pass@k" (unbiased: 1 − C(n−c, k)/C(n, k) of c right ones), "reward/<name>" (mean over
        samples to which it applies).

        pass@k says whether one of k independent completions at the stated temperature is right, a number of the policy and not
        of n.
        """
        found: dict[str, Tensor] = {}
        for k in ks if self.correct else ():
            known = [[(row, bool(row.double().isnan().any())) for row in self.correct[name]] for name in self.policies]
            rows = [[math.nan if lost else pass_at_k(int(row.sum()), len(row), k) for row, lost in each] for each in known]
            found[f"pass@{k}"] = torch.tensor(rows, dtype=torch.float64)
        for reward in self.rewards[self.policies[0]]:
            found[f"reward/{reward}"] = torch.stack([self.rewards[name][reward].double().nanmean(1) for name in self.policies])
        return {**found, **self.measured}

    def summary(self, ks: Sequence[int], *, resamples: int = 2000) -> dict[str, Any]:
        """{"settings", "policies": {name: {metric: [mean, low, high]}}, "differences": {"a − b": {metric: …}}}:
        paired, against the first policy. A mean is over the prompts of which the metric is known (not NaN)."""
        values = self.values(ks)
        names = self.policies
        return {
            "settings": {**self.settings, "prompts": len(next(iter(values.values()))[0]), "resamples": resamples},
            "policies": {
                name: {metric: _figures(metric, each[i][~each[i].isnan()], resamples) for metric, each in values.items()}
                for i, name in enumerate(names)
            },
            "differences": {
                f"{name} − {names[0]}": {
                    metric: _figures("", (each[i] - each[0])[~(each[i].isnan() | each[0].isnan())], resamples)
                    for metric, each in values.items()
                }
                for i, name in enumerate(names)
                if i
            },
        }


def _figures(metric: str, values: Tensor, resamples: int) -> list[float | None]:
    """[mean, low, high]; None for bounds that are not known. pass@k of prompts that all failed, or all passed:
    Wilson's interval."""
    if not len(values) or bool(values.isnan().any()):
        return [None, None, None]
    mean, low, high = bootstrap_interval(values, resamples=resamples)
    if metric.startswith("pass@") and math.isnan(low) and mean in (0.0, 1.0):
        mean, low, high = pass_rate([[bool(mean)]] * len(values), 1)
    return [None if math.isnan(value) else value for value in (mean, low, high)]
