"""Stability with a learned reward: Bradley–Terry or DPO maximum likelihood in a log-linear class (ours)."""

from __future__ import annotations

from math import exp

from multiref.bounds.statement import Terms, statement

__all__ = ["learned_reward_parameter", "learned_reward_value"]

_SOURCE = "derived; proof S in docs/bounds.md"
_SETTING = (
    "features of norm at most L, parameters within norm R",
    "reward linear in the features and learned by maximum likelihood from n Bradley–Terry pairs",
    "`pair_curvature`: least eigenvalue of the covariance of the pairs' feature differences",
)


def _curvature(pair_curvature: float, radius: float, feature_norm: float) -> float:
    """μ = λ_min s'(2RL) / 2, the strong convexity of the empirical loss, s the logistic function."""
    z = 2 * radius * feature_norm
    return pair_curvature * exp(-z) / (1 + exp(-z)) ** 2 / 2


@statement(
    title="replace-one stability of the parameter",
    formula="‖θ̂_S − θ̂_S'‖ ≤ 4L / (μ n),  μ = λ_min s'(2RL) / 2",
    rate="1/n",
    assumptions=_SETTING,
    citation=_SOURCE,
    status="derived",
)
def learned_reward_parameter(*, samples: float, feature_norm: float, radius: float, pair_curvature: float) -> Terms:
    r"""4L/(μn): per-example gradients are at most 2L, two examples differ."""
    mu = _curvature(pair_curvature, radius, feature_norm)
    return Terms({"replace-one": 4 * feature_norm / (mu * samples)}, trivial=2 * radius)


@statement(
    title="replace-one stability of the value",
    formula="sup_x |f_θ̂_S(x) − f_θ̂_S'(x)| ≤ L² · max‖θ̂ − θ*‖ · 4L / (μ n)",
    rate="1/n^{3/2}, as ‖θ̂ − θ*‖ falls like 1/√n",
    assumptions=(
        *_SETTING,
        "realisable: the true reward is linear in the features",
        "`distance`: the larger of ‖θ̂_S − θ*‖, ‖θ̂_S' − θ*‖",
    ),
    citation=_SOURCE,
    status="derived",
)
def learned_reward_value(
    *, samples: float, feature_norm: float, radius: float, pair_curvature: float, distance: float
) -> Terms:
    r"""∇f = V (θ* − θ) with ‖V‖ ≤ L², times the parameter's stability."""
    mu = _curvature(pair_curvature, radius, feature_norm)
    return Terms(
        {"replace-one": feature_norm**2 * distance * 4 * feature_norm / (mu * samples)}, trivial=3 * radius * feature_norm
    )
