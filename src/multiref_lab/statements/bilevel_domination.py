"""Weak gradient domination of the upper level, measured along paths: an assumption of the paper that nothing derives."""

import torch
from torch import Tensor

from multiref.bilevel import Likelihood
from multiref_lab.claim import Effort, Measurement, at_most, claim
from multiref_lab.races import Restricted, audit, descend, linear_world, log_linear, outer_path, settle, small_transformer

_LIMIT = 5.0


def _tabular(effort: Effort) -> tuple[Tensor, Tensor]:
    """Gaps to the best of several searches and gradient norms along sampled descent by the covariance, [P, S] each."""
    generator = torch.Generator().manual_seed(effort.choose(8, 108))
    world = linear_world(24, beta=0.5, prompts=4, completions=5, generator=generator)
    best = audit(world, Likelihood(), starts=effort.choose(1, 3), generator=torch.Generator().manual_seed(1)).value
    steps, generator = effort.choose(120, 600), torch.Generator().manual_seed(14)
    places, squares = descend(world, "covariance", steps=steps, pairs=8, rate=0.5, sigma=0.1, generator=generator)
    return torch.stack([world.upper_value(phi, Likelihood()) for phi in places]) - best, squares.sqrt()


def _class(case: Restricted, warm: int, steps: int) -> tuple[Tensor, Tensor]:
    """Gaps to the lowest value on the path, over its first half, and gradient norms there.

    Only paths whose lower level stayed at a minimum.
    """
    theta, _ = settle(case, case.start, warm=warm)
    values, norms = outer_path(case, theta, steps=steps, rate=0.5)
    half, whole = max(1, steps // 2), ~values.isnan().any(0)
    return (values - values.amin(0))[:half, whole], norms[:half, whole]


@claim(
    "bilevel-weak-domination",
    group="bilevel",
    order=2,
    statement="The gap of the upper level is at most a constant times its gradient's norm (weak gradient domination: assumed "
    "by the paper, not derivable).",
    source="FOUND, arXiv 2410.15610, assumption",
    predicts="a bounded ratio along the path",
    rule="verified where (ψ − ψ*)/‖∇ψ‖ stays below 5 along every path of 20 problems or more a class (transformers in the full "
    "form, where the lower level stayed at a minimum)",
)
def weak_domination(effort: Effort) -> Measurement:
    generator = torch.Generator().manual_seed(effort.choose(3, 103))  # the limit was set on the quick form's problems
    features = log_linear(20, features=8, generator=generator)
    paths = {"tabular": _tabular(effort), "log-linear, 8 of 20 features": _class(features, 0, effort.choose(6, 30))}
    if effort.full:
        paths["transformer of width 4"] = _class(small_transformer(20, width=4, generator=generator), 300, 12)
    checks, notes = [], []
    for label, (gaps, norms) in paths.items():
        linear, square = (gaps.clamp_min(0) / norms).amax(0), (gaps.clamp_min(0) / norms**2).amax(0)
        checks.append(at_most(f"{label}: largest (ψ − ψ*)/‖∇ψ‖ on {len(linear)} paths", _LIMIT, float(linear.max())))
        notes.append(
            f"{label}, {len(linear)} paths: (ψ − ψ*)/‖∇ψ‖ at its largest on a path, median {float(linear.median()):.2g}, "
            f"maximum {float(linear.max()):.2g}; (ψ − ψ*)/‖∇ψ‖² {float(square.median()):.2g} and {float(square.max()):.2g}"
        )
    taken = (
        ". Measured along paths that were taken, so a bound for these, no proof for any other; ψ* is the best value found "
        "(for the restricted classes: on the path itself)."
    )
    return Measurement(checks, note="; ".join(notes) + taken)
