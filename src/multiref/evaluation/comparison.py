"""Policies under one yardstick, exactly: where every completion of every prompt can be written down, nothing is estimated."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multiref import exact
from multiref.divergences import expectation, kl
from multiref.errors import ArgumentError


@dataclass(frozen=True)
class Comparison:
    """What several methods reached, as values [methods, units] of each metric; a unit is what repeats: a seed, or a prompt.

    The same unit in two rows shares its data, so differences are taken unit by unit.
    """

    methods: tuple[str, ...]
    unit: str
    values: Mapping[str, Tensor]

    def mean(self, metric: str) -> Tensor:
        """[methods]: averages over the units of which it is known (not NaN)."""
        return self._of(metric).nanmean(-1)

    def error(self, metric: str) -> Tensor:
        """[methods]: standard errors of these averages over units; NaN with a single unit."""
        return torch.stack([_error(row[~row.isnan()]) for row in self._of(metric)])

    def difference(self, metric: str, method: str, against: str) -> tuple[float, float]:
        """(mean, standard error) of method − against, unit by unit: what they share cancels."""
        one, other = (self._of(metric)[self.methods.index(name)] for name in (method, against))
        gap = (one - other)[~(one.isnan() | other.isnan())]
        return float(gap.mean()), float(_error(gap))

    def rows(self) -> list[dict[str, Any]]:
        """One mapping a method: metric → (mean, standard error)."""
        return [
            {"method": method, **{m: (float(self.mean(m)[i]), float(self.error(m)[i])) for m in self.values}}
            for i, method in enumerate(self.methods)
        ]

    def __str__(self) -> str:
        width = max(map(len, self.methods))
        lines = [" " * width + "  " + "  ".join(f"{name:>20}" for name in self.values)]
        for row in self.rows():
            cells = (f"{row[name][0]:.4f} ± {row[name][1]:.4f}" for name in self.values)
            lines.append(f"{row['method']:{width}}  " + "  ".join(f"{cell:>20}" for cell in cells))
        return "\n".join(lines) + f"\n(standard errors over {self._of(next(iter(self.values))).shape[-1]} {self.unit}s)"

    def _of(self, metric: str) -> Tensor:
        if metric not in self.values:
            raise ArgumentError(f"metric: found {metric!r}, expected one of {', '.join(self.values)}.")
        return self.values[metric]


def _error(values: Tensor) -> Tensor:
    """[units] → []: standard error of their mean; NaN of a single unit."""
    return values.std() / math.sqrt(len(values)) if len(values) > 1 else torch.tensor(math.nan)


def compare(
    log_policies: Mapping[str, Tensor | Sequence[Tensor]],
    reward: Tensor,
    ref_logps: Tensor,
    regularizer: Any,
    *,
    beta: float,
    names: Sequence[str] | None = None,
    correct: Tensor | None = None,
) -> Comparison:
    r"""Exact figures of each method, averaged over prompts, one value a seed.

        J = E_π r − β Σ_k w_k D(π‖π_k),     gap = J* − J ≥ 0,     KL(π‖π*),     reward E_π r,     KL(π‖π_k),     accuracy
        P_π(correct)

    One yardstick for every row: `regularizer`, `beta` and its optimum π* from `exact.solve`, whatever the method itself was
    trained for.

    Args:
        log_policies: method → [*B, Y] of one seed, or a sequence of those; every method with as many seeds.
        reward: [*B, Y], −inf on padding; ref_logps: [K, *B, Y], distributions over Y.
        names: of the K references; correct: [*B, Y] in [0, 1], which completions count as right.

    Raises: ArgumentError where shapes or numbers of seeds differ.
    """
    names = tuple(names) if names is not None else tuple(f"reference {k + 1}" for k in range(len(ref_logps)))
    if len(names) != len(ref_logps):
        raise ArgumentError(f"names: found {len(names)}, expected one for each of the {len(ref_logps)} references.")
    if not log_policies:
        raise ArgumentError("log_policies: expected at least one method, found none.")
    seeds = {method: _seeds(method, given, reward) for method, given in log_policies.items()}
    if len(set(map(len, seeds.values()))) != 1:
        counts = ", ".join(f"{method}: {len(runs)}" for method, runs in seeds.items())
        raise ArgumentError(f"log_policies: expected as many seeds for every method, found {counts}.")
    optimum = exact.solve(reward, ref_logps, regularizer, beta=beta)

    def measured(run: Tensor) -> dict[str, float]:
        value = exact.value(run, reward, ref_logps, regularizer, beta=beta)
        figures = {"J": value, "gap": optimum.value - value, "KL(π‖π*)": kl(run, optimum.log_policy)}
        figures |= {"reward": expectation(run, reward)}
        figures |= {f"KL(π‖{name})": kl(run, reference) for name, reference in zip(names, ref_logps)}
        figures |= {"accuracy": expectation(run, correct)} if correct is not None else {}
        return {metric: float(each.mean()) for metric, each in figures.items()}

    columns: dict[str, list[list[float]]] = {}
    for runs in seeds.values():
        figures = list(map(measured, runs))
        for metric in figures[0]:
            columns.setdefault(metric, []).append([figure[metric] for figure in figures])
    return Comparison(
        tuple(seeds), "seed", {metric: torch.tensor(rows, dtype=torch.float64) for metric, rows in columns.items()}
    )


def _seeds(method: str, given: Tensor | Sequence[Tensor], reward: Tensor) -> list[Tensor]:
    runs = [given] if isinstance(given, Tensor) else list(given)
    for run in runs:
        if run.shape != reward.shape:
            raise ArgumentError(
                f"log_policies: {method!r} has shape {tuple(run.shape)}, expected that of reward, {tuple(reward.shape)}."
            )
    if not runs:
        raise ArgumentError(f"log_policies: {method!r} has no seed; expected at least one.")
    return runs
