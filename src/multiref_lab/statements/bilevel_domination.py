"""Weak gradient domination of the upper level, measured along paths: an assumption of the paper that nothing derives."""

from __future__ import annotations

import torch
from torch import Tensor

from multiref.bilevel import upper_named
from multiref_lab.bilevel import audit, linear_world
from multiref_lab.bilevel.restricted import Restricted, log_linear, outer_path, settle, small_transformer
from multiref_lab.bilevel.sampled import descend
from multiref_lab.claim import Claim, Effort, Measurement, all_hold, at_most

__all__ = ["BILEVEL_DOMINATION"]

_LIMIT = 5.0


def _tabular(effort: Effort) -> tuple[Tensor, Tensor]:
    """Gaps to the best of several searches and gradient norms along E3's sampled descent, [P, S] each."""
    world, upper = (
        linear_world(24, beta=0.5, prompts=4, completions=5, generator=torch.Generator().manual_seed(effort.choose(8, 108))),
        upper_named("likelihood"),
    )
    best = audit(world, upper, starts=effort.choose(1, 3), generator=torch.Generator().manual_seed(1)).value
    steps = effort.choose(120, 600)
    places, squares = descend(
        world, "covariance", steps=steps, pairs=8, rate=0.5, sigma=0.1, generator=torch.Generator().manual_seed(14)
    )
    gaps = torch.stack([world.upper_value(phi, upper) for phi in places]) - best
    return gaps, squares.sqrt()


def _class(case: Restricted, warm: int, steps: int) -> tuple[Tensor, Tensor]:
    """Gaps to the lowest value on the path, over its first half, and gradient norms there; only paths whose lower level stayed at a minimum."""
    theta, _ = settle(case, case.start, warm=warm)
    values, norms = outer_path(case, theta, steps=steps, rate=0.5)
    half, whole = max(1, steps // 2), ~values.isnan().any(0)
    return (values - values.amin(0))[:half, whole], norms[:half, whole]


def _measure(effort: Effort) -> Measurement:
    generator = torch.Generator().manual_seed(effort.choose(3, 103))  # the limit was set on the quick form's problems
    paths = {
        "tabular": _tabular(effort),
        "log-linear, 8 of 20 features": _class(log_linear(20, features=8, generator=generator), 0, effort.choose(6, 30)),
    }
    if effort.full:
        paths["transformer of width 4"] = _class(small_transformer(20, width=4, generator=generator), 300, 12)
    checks, notes = [], []
    for label, (gaps, norms) in paths.items():
        linear, quadratic = gaps.clamp_min(0) / norms, gaps.clamp_min(0) / norms**2
        checks.append(at_most(f"{label}: largest (ψ − ψ*)/‖∇ψ‖ on {linear.shape[1]} paths", _LIMIT, float(linear.max())))
        worst, square = linear.amax(0), quadratic.amax(0)
        notes.append(
            f"{label}, {linear.shape[1]} paths: (ψ − ψ*)/‖∇ψ‖ at its largest on a path, median {float(worst.median()):.2g}, maximum {float(worst.max()):.2g}; "
            f"(ψ − ψ*)/‖∇ψ‖² {float(square.median()):.2g} and {float(square.max()):.2g}"
        )
    return Measurement(
        tuple(checks),
        note="; ".join(notes)
        + ". Measured along paths that were taken, so a bound for these, no proof for any other; ψ* is the best value found "
        "(for the restricted classes: on the path itself).",
    )


BILEVEL_DOMINATION = Claim(
    name="bilevel-weak-domination",
    group="bilevel",
    statement="The gap of the upper level is at most a constant times its gradient's norm (weak gradient domination: assumed by the paper, not derivable).",
    status="found",
    source="arXiv 2410.15610, assumption",
    predicted="a bounded ratio along the path",
    rule="verified where (ψ − ψ*)/‖∇ψ‖ stays below 5 along every path of 20 problems or more a class (transformers in the full form, where the lower level stayed at a minimum)",
    measure=_measure,
    decide=all_hold,
)
