"""Generalisation of RLHF by algorithmic stability: arXiv 2601.16403 as printed, and what replaces it (ours).

Setting: n prompts drawn independently, a *known* noiseless linear reward ⟨θ*, φ(x, a)⟩, one reference, KL strength 1 after
rescaling, policies π_θ ∝ π_ref e^{⟨θ, φ⟩}, f_π(x) the regularised value at x, J its mean over prompts,
J_S over the training prompts, V_x(θ) = Cov_{π_θ(·|x)}[φ], V_S its mean over the training prompts.
Nothing printed is about preference noise, DPO or PPO.
Quantities: `radius` R (= 3 × ‖θ*‖'s bound), `feature_norm` C, `delta` ρ, `residual` ε_n. |f| ≤ 3RC is the trivial range.

Ours: with a known reward the empirical problem interpolates. f_{θ*}(x) − f_{θ_S}(x) = KL(π_{θ_S} ‖ π_{θ*})(x) exactly, at every
prompt, and V_S (θ* − θ_S) = ∇J_S(θ_S). Split θ* − θ_S along the column space of V_S and across it:
the gradient bounds the first part, A5's residual the second. Nothing random is left.
With a reward learned in the same log-linear class (Bradley–Terry or DPO maximum likelihood) the noise of the labels remains,
and `learned_reward_…` bound what one pair changes.
"""

from collections.abc import Mapping
from functools import partial
from math import exp, log, sqrt

from multiref.bounds.statement import Statement

_PAPER = "Li, Yi, Wang, Cui, Liu, arXiv 2601.16403"
_LINEAR = ("features of norm at most C", "reward linear in them, known, without noise, ‖θ*‖ ≤ R/3", "parameters within norm R")
_A5 = (
    "A5: every feature is within ε_n of the span of the training prompts' features, for any sample "
    "(a sample repeating one prompt violates it)"
)
_UNPRINTED = "constants and logarithms are not printed with the statement: taken as 1"
_SPAN = "every feature is within ε_n of the column space of V_S(θ_S)"
_PAIRS = (
    "features of norm at most L, parameters within norm R",
    "reward linear in the features and learned by maximum likelihood from n Bradley–Terry pairs",
    "`pair_curvature`: least eigenvalue of the covariance of the pairs' feature differences",
)
_SAMPLE = "samples radius feature_norm sigma_max sigma_min sigma_min_other residual?"
_ASCENT = "samples iterations radius feature_norm condition residual?"


def _whole_range(q: Mapping[str, float]) -> float:
    """3RC."""
    return 3 * q["radius"] * q["feature_norm"]


def _squared_gradient_range(q: Mapping[str, float]) -> float:
    """‖V_S (θ* − θ)‖² ≤ (C² (R + R/3))²."""
    return float((4 * q["radius"] * q["feature_norm"] ** 2 / 3) ** 2)


def _replace_one(n: float, R: float, C: float, top: float, low: float, other: float, ε: float) -> tuple[float, float]:
    """Γ₁/n and 2RC √(Γ₁/n), with Γ₁ = 4 n R ε_n + 8 R C³ σ_max / (σ⁺_min σ⁺_min')."""
    gamma = 4 * n * R * ε + 8 * R * C**3 * top / (low * other)
    return gamma / n, 2 * R * C * sqrt(gamma / n)


def _ascent(power: float, n: float, T: float, condition: float, ε: float) -> dict[str, float]:
    """√ε_n + condition · (T^{−power} + n^{−1/2})."""
    return {"residual": sqrt(ε), "optimisation": condition * T**-power, "statistics": condition / sqrt(n)}


def _half_square(optimisation: float, missing: float) -> dict[str, float]:
    """½ (optimisation + missing)², term by term."""
    return {
        "optimisation": 0.5 * optimisation**2,
        "unseen directions": 0.5 * missing**2,
        "cross term": optimisation * missing,
    }


def _curvature(least: float, R: float, L: float) -> float:
    """μ = λ_min s'(2RL) / 2, the strong convexity of the empirical loss, s the logistic function."""
    z = 2 * R * L
    return least * exp(-z) / (1 + exp(-z)) ** 2 / 2


_printed = partial(Statement, status="found", assumptions=(*_LINEAR, _A5), trivial=_whole_range)
_ours = partial(Statement, status="derived", assumptions=(*_LINEAR, _SPAN), trivial=_whole_range)

stability_lemma_1 = _printed(
    name="stability-lemma-1",
    title="Lemma 1, concentration of the best empirical value",
    formula="|J_S(θ_S*) − J(θ*)| ≤ 3RC √(2 log(2/ρ) / n)",
    rate="1/√n",
    assumptions=_LINEAR,
    citation=f"{_PAPER}, Lemma 1",
    quantities="samples radius feature_norm delta?",
    terms=lambda n, R, C, ρ: {"concentration": 3 * R * C * sqrt(2 * log(2 / ρ) / n)},
)
stability_theorem_1 = _printed(
    name="stability-theorem-1",
    title="Theorem 1, chance of another stationary point than θ*",
    formula="ρ = exp(d log(432 R C⁵ / σ²) − n σ² / (128 C⁴)), from n > (128 C⁴/σ²)(log(1/ρ) + d log(432 R C⁵/σ²))",
    rate="exponential in n",
    assumptions=(
        *_LINEAR,
        "A3: E_x V_x(θ) ⪰ σI for every θ in the region (it cannot hold on all of ℝ^d: softmax saturates)",
    ),
    citation=f"{_PAPER}, Theorem 1",
    quantities="samples radius feature_norm dimension curvature",
    terms=lambda n, R, C, d, σ: {"failure probability": exp(d * log(432 * R * C**5 / σ**2) - n * σ**2 / (128 * C**4))},
    trivial=lambda q: 1.0,
    note="the failure probability that the printed sample size allows; solve for samples to get it",
)
stability_theorem_2 = _printed(
    name="stability-theorem-2",
    title="Theorem 2, uniform stability of the empirical optimum",
    formula="E_stab ≤ Γ₁/n + 2RC √(Γ₁/n),  Γ₁ = 4nRε_n + 8RC³ σ_max / (σ⁺_min σ⁺_min')",
    rate="1/√n",
    citation=f"{_PAPER}, Theorem 2",
    quantities=_SAMPLE,
    terms=lambda *q: dict(zip(("Γ₁/n", "2RC √(Γ₁/n)"), _replace_one(*q), strict=True)),
)
stability_theorem_2_gap = _printed(
    name="stability-theorem-2-gap",
    title="Theorem 2, generalisation gap of the empirical optimum",
    formula="|J_S(θ_S*) − J(θ_S*)| ≤ E_stab log n log(1/ρ) + 6RC √(log(1/ρ)/n)",
    rate="log n / √n",
    citation=f"{_PAPER}, Theorem 2",
    quantities=f"{_SAMPLE} delta?",
    terms=lambda n, R, C, top, low, other, ε, ρ: {
        "stability": sum(_replace_one(n, R, C, top, low, other, ε)) * log(n) * log(1 / ρ),
        "sampling": 6 * R * C * sqrt(log(1 / ρ) / n),
    },
)
stability_theorem_3 = _printed(
    name="stability-theorem-3",
    title="Theorem 3, sub-optimality of the empirical optimum",
    formula="|J(θ_S*) − J(θ*)| ≤ (Γ₁/n + 2RC√(Γ₁/n)) log n log(2/ρ) + 6RC√(log(2/ρ)/n) + 3RC√(2 log(4/ρ)/n)",
    rate="log n / √n",
    citation=f"{_PAPER}, Theorem 3",
    quantities=f"{_SAMPLE} delta?",
    terms=lambda *q: {
        **stability_theorem_2_gap.terms(*q[:-1], q[-1] / 2),
        **stability_lemma_1.terms(*q[:3], q[-1] / 2),
    },
    note="the sum of Theorem 2's gap at ρ/2 and Lemma 1 at ρ/2",
)
stability_corollary_1 = _printed(
    name="stability-corollary-1",
    title="Corollary 1, optimisation error at gradient norm δ",
    formula="|J_S(θ_S*) − J_S(θ_S)| ≤ q + 2RC√q,  q = 4Rε_n + 2Cδ σ_max / (σ⁺_min σ⁺_min')",
    rate="√‖∇J_S‖",
    citation=f"{_PAPER}, Corollary 1",
    quantities="gradient_norm radius feature_norm sigma_max sigma_min sigma_min_other residual?",
    terms=lambda δ, R, C, top, low, other, ε: {
        "q": (q := 4 * R * ε + 2 * C * δ * top / (low * other)),
        "2RC√q": 2 * R * C * sqrt(q),
    },
    note="`sigma_min` at the empirical optimum, `sigma_min_other` at the returned parameter",
)
stability_gradient_ascent_norm = _printed(
    name="stability-gradient-ascent-norm",
    title="gradient ascent: least squared gradient norm over T steps",
    formula="min_t ‖∇J_S(θ_t)‖² ≤ 12 L_f R C / T",
    rate="1/T",
    assumptions=(*_LINEAR, "step 1/L_f, ∇J_S is L_f-Lipschitz", "the iterate of least gradient norm is returned, not the last"),
    citation=f"{_PAPER}, before Theorem 4",
    quantities="iterations radius feature_norm smoothness",
    terms=lambda T, R, C, L_f: {"squared gradient norm": 12 * L_f * R * C / T},
    trivial=_squared_gradient_range,
    note="a bound on the *squared* norm",
)
stability_gradient_ascent = _printed(
    name="stability-gradient-ascent",
    title="Theorems 4 and 5, gradient ascent",
    formula="E_stab, sub-optimality ≲ √ε_n + (√Γ_SS + √Γ_SS')(T^{−1/4} + n^{−1/2})",
    rate="T^{−1/4} + 1/√n",
    assumptions=(*_LINEAR, _A5, _UNPRINTED),
    citation=f"{_PAPER}, Theorems 4 and 5",
    status="provisional",
    quantities=_ASCENT,
    terms=lambda n, T, R, C, condition, ε: _ascent(0.25, n, T, condition, ε),
)
stability_stochastic_ascent_norm = _printed(
    name="stability-stochastic-ascent-norm",
    title="stochastic ascent: least squared full-gradient norm over T steps",
    formula="min_t ‖∇J_S‖² ≤ (6 L_f/√T) ((6RC + 2R²C⁴/L_f) + (2R²C⁴/L_f) log T + log(1/ρ)/λ)",
    rate="log T / √T",
    assumptions=(
        *_LINEAR,
        "step 1/(2 L_f √t), one prompt a step",
        "(e^λ − λ − 1)/λ ≤ L_f / (8R²C⁴)",
        "the iterate of least *full* gradient norm is returned",
    ),
    citation=f"{_PAPER}, before Theorem 6",
    quantities="iterations radius feature_norm smoothness mixing delta?",
    terms=lambda T, R, C, L_f, λ, ρ: {
        "start": (scale := 6 * L_f / sqrt(T)) * (6 * R * C + (noise := 2 * R**2 * C**4 / L_f)),
        "noise": scale * noise * log(T),
        "confidence": scale * log(1 / ρ) / λ,
    },
    trivial=_squared_gradient_range,
    note="a bound on the *squared* norm, in three terms",
)
stability_stochastic_ascent = _printed(
    name="stability-stochastic-ascent",
    title="Theorems 6 and 7, stochastic gradient ascent",
    formula="E_stab, sub-optimality ≲ √ε_n + (√Γ_SS + √Γ_SS')(T^{−1/8} + n^{−1/2})",
    rate="T^{−1/8} + 1/√n",
    assumptions=(*_LINEAR, _A5, _UNPRINTED),
    citation=f"{_PAPER}, Theorems 6 and 7",
    status="provisional",
    quantities=_ASCENT,
    terms=lambda n, T, R, C, condition, ε: _ascent(0.125, n, T, condition, ε),
)

# ---- ours ----

interpolation = _ours(
    name="interpolation",
    title="sub-optimality at every prompt, at any parameter reached",
    formula="KL(π_{θ_S} ‖ π_{θ*})(x) ≤ ½ (C ‖∇J_S(θ_S)‖ / σ⁺_min(V_S(θ_S)) + ‖θ_S − θ*‖ ε_n)²",
    rate="‖∇J_S‖² + ε_n²",
    citation="derived; proof I in docs/bounds.md",
    quantities="gradient_norm sigma_min feature_norm distance radius residual?",
    terms=lambda δ, low, C, distance, R, ε: _half_square(C * δ / low, distance * ε),
    note="it bounds replace-one stability too, as it bounds both sides",
)
interpolation_optimum = _ours(
    name="interpolation-optimum",
    title="sub-optimality of the empirical optimum",
    formula="J(θ*) − J(θ_S*) ≤ (8/9) R² ε_n²",
    rate="1/n² under A5 (ε_n = O(1/n)); exactly 0 once the training prompts span the features",
    citation="derived; proof I in docs/bounds.md",
    quantities="radius feature_norm residual",
    terms=lambda R, C, ε: {"unseen directions": 8 / 9 * R**2 * ε**2},
    note="`interpolation` with ∇J_S = 0 and ‖θ_S − θ*‖ ≤ R + R/3",
)
interpolation_gradient_ascent = _ours(
    name="interpolation-gradient-ascent",
    title="sub-optimality of gradient ascent",
    formula="J(θ*) − J(θ_S) ≤ ½ (C √(12 L_f R C / T) / σ⁺_min + (4/3) R ε_n)²,  L_f = C² + (8/3) R C³",
    rate="1/T + 1/n² under A5; in fact geometric in T",
    assumptions=(*_LINEAR, _SPAN, "step 1/L_f, the iterate of least gradient norm is returned"),
    citation="derived; proof I in docs/bounds.md",
    quantities="iterations radius feature_norm sigma_min residual?",
    terms=lambda T, R, C, low, ε: _half_square(C / low * sqrt(12 * (C**2 + 8 / 3 * R * C**3) * R * C / T), 4 / 3 * R * ε),
    note="`interpolation` with the printed gradient norm after T steps and our L_f",
)
learned_reward_parameter = _ours(
    name="learned-reward-parameter",
    title="replace-one stability of the parameter",
    formula="‖θ̂_S − θ̂_S'‖ ≤ 4L / (μ n),  μ = λ_min s'(2RL) / 2",
    rate="1/n",
    assumptions=_PAIRS,
    citation="derived; proof S in docs/bounds.md",
    quantities="samples feature_norm radius pair_curvature",
    terms=lambda n, L, R, least: {"replace-one": 4 * L / (_curvature(least, R, L) * n)},
    trivial=lambda q: 2 * q["radius"],
    note="per-example gradients are at most 2L, two examples differ",
)
learned_reward_value = _ours(
    name="learned-reward-value",
    title="replace-one stability of the value",
    formula="sup_x |f_θ̂_S(x) − f_θ̂_S'(x)| ≤ L² · max‖θ̂ − θ*‖ · 4L / (μ n)",
    rate="1/n^{3/2}, as ‖θ̂ − θ*‖ falls like 1/√n",
    assumptions=(
        *_PAIRS,
        "realisable: the true reward is linear in the features",
        "`distance`: the larger of ‖θ̂_S − θ*‖, ‖θ̂_S' − θ*‖",
    ),
    citation="derived; proof S in docs/bounds.md",
    quantities="samples feature_norm radius pair_curvature distance",
    terms=lambda n, L, R, least, distance: {"replace-one": L**2 * distance * 4 * L / (_curvature(least, R, L) * n)},
    note="∇f = V (θ* − θ) with ‖V‖ ≤ L², times the parameter's stability",
)
