"""What replaces the printed stability theorems: with a known reward the empirical problem interpolates (ours).

f_{θ*}(x) − f_{θ_S}(x) = KL(π_{θ_S} ‖ π_{θ*})(x) exactly, at every prompt, and V_S (θ* − θ_S) = ∇J_S(θ_S). Split θ* − θ_S along the column
space of V_S and across it: the gradient bounds the first part, A5's residual the second. Nothing random is left.
"""

from __future__ import annotations

from math import sqrt

from multiref.bounds.statement import Terms, statement

__all__ = ["interpolation", "interpolation_gradient_ascent", "interpolation_optimum"]

_SOURCE = "derived; proof I in docs/bounds.md"
_LINEAR = ("features of norm at most C", "reward linear in them, known, without noise, ‖θ*‖ ≤ R/3", "parameters within norm R")
_SPAN = "every feature is within ε_n of the column space of V_S(θ_S)"


@statement(
    title="sub-optimality at every prompt, at any parameter reached",
    formula="KL(π_{θ_S} ‖ π_{θ*})(x) ≤ ½ (C ‖∇J_S(θ_S)‖ / σ⁺_min(V_S(θ_S)) + ‖θ_S − θ*‖ ε_n)²",
    rate="‖∇J_S‖² + ε_n²",
    assumptions=(*_LINEAR, _SPAN),
    citation=_SOURCE,
    status="derived",
)
def interpolation(
    *, gradient_norm: float, sigma_min: float, feature_norm: float, distance: float, radius: float, residual: float = 0.0
) -> Terms:
    r"""½ (C ‖∇J_S‖ / σ⁺_min + ‖θ_S − θ*‖ ε_n)². It bounds replace-one stability too, as it bounds both sides."""
    optimisation, missing = feature_norm * gradient_norm / sigma_min, distance * residual
    terms = {"optimisation": 0.5 * optimisation**2, "unseen directions": 0.5 * missing**2, "cross term": optimisation * missing}
    return Terms(terms, trivial=3 * radius * feature_norm)


@statement(
    title="sub-optimality of the empirical optimum",
    formula="J(θ*) − J(θ_S*) ≤ (8/9) R² ε_n²",
    rate="1/n² under A5 (ε_n = O(1/n)); exactly 0 once the training prompts span the features",
    assumptions=(*_LINEAR, _SPAN),
    citation=_SOURCE,
    status="derived",
)
def interpolation_optimum(*, radius: float, feature_norm: float, residual: float) -> Terms:
    r"""(8/9) R² ε_n²: `interpolation` with ∇J_S = 0 and ‖θ_S − θ*‖ ≤ R + R/3."""
    return Terms({"unseen directions": 8 / 9 * radius**2 * residual**2}, trivial=3 * radius * feature_norm)


@statement(
    title="sub-optimality of gradient ascent",
    formula="J(θ*) − J(θ_S) ≤ ½ (C √(12 L_f R C / T) / σ⁺_min + (4/3) R ε_n)²,  L_f = C² + (8/3) R C³",
    rate="1/T + 1/n² under A5; in fact geometric in T",
    assumptions=(*_LINEAR, _SPAN, "step 1/L_f, the iterate of least gradient norm is returned"),
    citation=_SOURCE,
    status="derived",
)
def interpolation_gradient_ascent(
    *, iterations: float, radius: float, feature_norm: float, sigma_min: float, residual: float = 0.0
) -> Terms:
    r"""`interpolation` with the printed gradient norm after T steps and our L_f."""
    smoothness = feature_norm**2 + 8 / 3 * radius * feature_norm**3
    optimisation = feature_norm / sigma_min * sqrt(12 * smoothness * radius * feature_norm / iterations)
    missing = 4 / 3 * radius * residual
    terms = {"optimisation": 0.5 * optimisation**2, "unseen directions": 0.5 * missing**2, "cross term": optimisation * missing}
    return Terms(terms, trivial=3 * radius * feature_norm)
