"""Log-log slopes on the top decade, and intervals by bootstrap over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from multiref.errors import ArgumentError
from multiref_lab.claim import Curve, Estimate

__all__ = ["bootstrap_mean", "fit_slope", "log_spaced", "measured_curve"]

_RESAMPLES = 1000


def log_spaced(low: float, high: float, count: int) -> list[int]:
    """`count` whole numbers, evenly spaced in log."""
    return sorted({round(10**x) for x in torch.linspace(torch.tensor(low).log10(), torch.tensor(high).log10(), count).tolist()})


def _resampled(values: Tensor, seed: int = 0) -> Tensor:
    """[S, P] → [resamples, P]: means over seeds drawn with replacement, whole curves at a time."""
    seeds = values.shape[0]
    drawn = torch.randint(seeds, (_RESAMPLES, seeds), generator=torch.Generator().manual_seed(seed))
    counts = torch.zeros(_RESAMPLES, seeds, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones_like(drawn, dtype=torch.float64)
    )
    return counts @ values.double() / seeds


def bootstrap_mean(values: Tensor) -> Estimate:
    """[S] → the mean with a 95 % percentile interval."""
    low, high = torch.quantile(_resampled(values.reshape(-1, 1)), torch.tensor([0.025, 0.975], dtype=torch.float64))
    return Estimate(float(values.double().mean()), float(low), float(high))


def fit_slope(x: Sequence[float], values: Tensor, *, decade: float = 10.0) -> Estimate:
    r"""[P], [S, P] → least-squares slope of log(mean over seeds) against log x over the points with x ≥ x_max/decade, bootstrap over seeds.

    Raises:
        ArgumentError: fewer than three points in the decade, or means that are not positive there.
    """
    points = torch.as_tensor(x, dtype=torch.float64)
    top = points >= points.max() / (decade * (1 + 1e-9))
    means = values.double()[:, top].mean(0)
    if int(top.sum()) < 3 or not bool((means > 0).all()):
        raise ArgumentError(
            f"slope: found {int(top.sum())} points with means {means.tolist()}, expected at least 3 positive ones"
        )
    centred = points[top].log() - points[top].log().mean()
    direction = centred / (centred**2).sum()
    resampled = _resampled(values[:, top]).clamp_min(torch.finfo(torch.float64).tiny).log() @ direction
    low, high = torch.quantile(resampled, torch.tensor([0.025, 0.975], dtype=torch.float64))
    return Estimate(float(means.log() @ direction), float(low), float(high))


def measured_curve(label: str, x: Sequence[float], values: Tensor, *, slope: Estimate | None = None) -> Curve:
    """[P], [S, P] → a curve of means with bootstrap intervals."""
    low, high = torch.quantile(_resampled(values), torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
    mean = values.double().mean(0)
    return Curve(
        label, tuple(map(float, x)), tuple(mean.tolist()), "measured", tuple(low.tolist()), tuple(high.tolist()), slope
    )
