"""Generalisation of RLHF by algorithmic stability, arXiv 2601.16403: its statements as printed.

Setting: n prompts drawn independently, a *known* noiseless linear reward ⟨θ*, φ(x, a)⟩, one reference, KL strength 1 after rescaling,
policies π_θ ∝ π_ref e^{⟨θ, φ⟩}, f_π(x) the regularised value at x, J its mean over prompts, J_S over the training prompts,
V_x(θ) = Cov_{π_θ(·|x)}[φ], V_S its mean over the training prompts. Nothing here is about preference noise, DPO or PPO.
Quantities: `radius` R (= 3 × ‖θ*‖'s bound), `feature_norm` C, `delta` ρ, `residual` ε_n. |f| ≤ 3RC is the trivial range.
"""

from __future__ import annotations

from math import exp, log, sqrt

from multiref.bounds.statement import Terms, statement

__all__ = [
    "stability_corollary_1",
    "stability_gradient_ascent",
    "stability_gradient_ascent_norm",
    "stability_lemma_1",
    "stability_stochastic_ascent",
    "stability_stochastic_ascent_norm",
    "stability_theorem_1",
    "stability_theorem_2",
    "stability_theorem_2_gap",
    "stability_theorem_3",
]

_PAPER = "Li, Yi, Wang, Cui, Liu, arXiv 2601.16403"
_LINEAR = ("features of norm at most C", "reward linear in them, known, without noise, ‖θ*‖ ≤ R/3", "parameters within norm R")
_A5 = "A5: every feature is within ε_n of the span of the training prompts' features, for any sample (a sample repeating one prompt violates it)"


def _gamma(samples: float, radius: float, feature_norm: float, residual: float, top: float, low: float, other: float) -> float:
    """Γ₁ = 4 n R ε_n + 8 R C³ σ_max / (σ⁺_min σ⁺_min')."""
    return 4 * samples * radius * residual + 8 * radius * feature_norm**3 * top / (low * other)


def _replace_one(gamma: float, samples: float, radius: float, feature_norm: float) -> float:
    """Γ₁/n + 2RC √(Γ₁/n)."""
    return gamma / samples + 2 * radius * feature_norm * sqrt(gamma / samples)


@statement(
    title="Lemma 1, concentration of the best empirical value",
    formula="|J_S(θ_S*) − J(θ*)| ≤ 3RC √(2 log(2/ρ) / n)",
    rate="1/√n",
    assumptions=_LINEAR,
    citation=f"{_PAPER}, Lemma 1",
    status="found",
)
def stability_lemma_1(*, samples: float, radius: float, feature_norm: float, delta: float = 0.05) -> Terms:
    r"""3RC √(2 log(2/ρ)/n)."""
    whole = 3 * radius * feature_norm
    return Terms({"concentration": whole * sqrt(2 * log(2 / delta) / samples)}, trivial=whole)


@statement(
    title="Theorem 1, chance that the empirical problem has another stationary point than θ*",
    formula="ρ = exp(d log(432 R C⁵ / σ²) − n σ² / (128 C⁴)), from n > (128 C⁴/σ²)(log(1/ρ) + d log(432 R C⁵/σ²))",
    rate="exponential in n",
    assumptions=(*_LINEAR, "A3: E_x V_x(θ) ⪰ σI for every θ in the region (it cannot hold on all of ℝ^d: softmax saturates)"),
    citation=f"{_PAPER}, Theorem 1",
    status="found",
)
def stability_theorem_1(*, samples: float, radius: float, feature_norm: float, dimension: float, curvature: float) -> Terms:
    r"""The failure probability that the printed sample size allows; solve for samples to get the sample size."""
    covering = dimension * log(432 * radius * feature_norm**5 / curvature**2)
    return Terms({"failure probability": exp(covering - samples * curvature**2 / (128 * feature_norm**4))}, trivial=1.0)


@statement(
    title="Theorem 2, uniform stability of the empirical optimum",
    formula="E_stab ≤ Γ₁/n + 2RC √(Γ₁/n),  Γ₁ = 4nRε_n + 8RC³ σ_max / (σ⁺_min σ⁺_min')",
    rate="1/√n",
    assumptions=(*_LINEAR, _A5),
    citation=f"{_PAPER}, Theorem 2",
    status="found",
)
def stability_theorem_2(
    *,
    samples: float,
    radius: float,
    feature_norm: float,
    sigma_max: float,
    sigma_min: float,
    sigma_min_other: float,
    residual: float = 0.0,
) -> Terms:
    r"""Γ₁/n + 2RC √(Γ₁/n)."""
    gamma = _gamma(samples, radius, feature_norm, residual, sigma_max, sigma_min, sigma_min_other)
    terms = {"Γ₁/n": gamma / samples, "2RC √(Γ₁/n)": 2 * radius * feature_norm * sqrt(gamma / samples)}
    return Terms(terms, trivial=3 * radius * feature_norm)


@statement(
    title="Theorem 2, generalisation gap of the empirical optimum",
    formula="|J_S(θ_S*) − J(θ_S*)| ≤ E_stab log n log(1/ρ) + 6RC √(log(1/ρ)/n)",
    rate="log n / √n",
    assumptions=(*_LINEAR, _A5),
    citation=f"{_PAPER}, Theorem 2",
    status="found",
)
def stability_theorem_2_gap(
    *,
    samples: float,
    radius: float,
    feature_norm: float,
    sigma_max: float,
    sigma_min: float,
    sigma_min_other: float,
    residual: float = 0.0,
    delta: float = 0.05,
) -> Terms:
    r"""(Γ₁/n + 2RC √(Γ₁/n)) log n log(1/ρ) + 6RC √(log(1/ρ)/n)."""
    gamma = _gamma(samples, radius, feature_norm, residual, sigma_max, sigma_min, sigma_min_other)
    stable = _replace_one(gamma, samples, radius, feature_norm) * log(samples) * log(1 / delta)
    sampling = 6 * radius * feature_norm * sqrt(log(1 / delta) / samples)
    return Terms({"stability": stable, "sampling": sampling}, trivial=3 * radius * feature_norm)


@statement(
    title="Theorem 3, sub-optimality of the empirical optimum",
    formula="|J(θ_S*) − J(θ*)| ≤ (Γ₁/n + 2RC√(Γ₁/n)) log n log(2/ρ) + 6RC√(log(2/ρ)/n) + 3RC√(2 log(4/ρ)/n)",
    rate="log n / √n",
    assumptions=(*_LINEAR, _A5),
    citation=f"{_PAPER}, Theorem 3",
    status="found",
)
def stability_theorem_3(
    *,
    samples: float,
    radius: float,
    feature_norm: float,
    sigma_max: float,
    sigma_min: float,
    sigma_min_other: float,
    residual: float = 0.0,
    delta: float = 0.05,
) -> Terms:
    r"""The sum of Theorem 2's gap at ρ/2 and Lemma 1 at ρ/2."""
    gamma = _gamma(samples, radius, feature_norm, residual, sigma_max, sigma_min, sigma_min_other)
    stable = _replace_one(gamma, samples, radius, feature_norm) * log(samples) * log(2 / delta)
    sampling = 6 * radius * feature_norm * sqrt(log(2 / delta) / samples)
    concentration = 3 * radius * feature_norm * sqrt(2 * log(4 / delta) / samples)
    return Terms({"stability": stable, "sampling": sampling, "concentration": concentration}, trivial=3 * radius * feature_norm)


@statement(
    title="Corollary 1, optimisation error at gradient norm δ",
    formula="|J_S(θ_S*) − J_S(θ_S)| ≤ q + 2RC√q,  q = 4Rε_n + 2Cδ σ_max / (σ⁺_min σ⁺_min')",
    rate="√‖∇J_S‖",
    assumptions=(*_LINEAR, _A5),
    citation=f"{_PAPER}, Corollary 1",
    status="found",
)
def stability_corollary_1(
    *,
    gradient_norm: float,
    radius: float,
    feature_norm: float,
    sigma_max: float,
    sigma_min: float,
    sigma_min_other: float,
    residual: float = 0.0,
) -> Terms:
    r"""q + 2RC√q; `sigma_min` at the empirical optimum, `sigma_min_other` at the returned parameter."""
    q = 4 * radius * residual + 2 * feature_norm * gradient_norm * sigma_max / (sigma_min * sigma_min_other)
    return Terms({"q": q, "2RC√q": 2 * radius * feature_norm * sqrt(q)}, trivial=3 * radius * feature_norm)


@statement(
    title="gradient ascent: least squared gradient norm over T steps",
    formula="min_t ‖∇J_S(θ_t)‖² ≤ 12 L_f R C / T",
    rate="1/T",
    assumptions=(*_LINEAR, "step 1/L_f, ∇J_S is L_f-Lipschitz", "the iterate of least gradient norm is returned, not the last"),
    citation=f"{_PAPER}, before Theorem 4",
    status="found",
)
def stability_gradient_ascent_norm(*, iterations: float, radius: float, feature_norm: float, smoothness: float) -> Terms:
    r"""12 L_f R C / T, a bound on the *squared* norm."""
    trivial = (4 * radius * feature_norm**2 / 3) ** 2  # ‖V_S (θ* − θ)‖ ≤ C² (R + R/3)
    return Terms({"squared gradient norm": 12 * smoothness * radius * feature_norm / iterations}, trivial=trivial)


@statement(
    title="Theorems 4 and 5, gradient ascent",
    formula="E_stab, sub-optimality ≲ √ε_n + (√Γ_SS + √Γ_SS')(T^{−1/4} + n^{−1/2})",
    rate="T^{−1/4} + 1/√n",
    assumptions=(*_LINEAR, _A5, "constants and logarithms are not printed with the statement: taken as 1"),
    citation=f"{_PAPER}, Theorems 4 and 5",
    status="provisional",
)
def stability_gradient_ascent(
    *, samples: float, iterations: float, radius: float, feature_norm: float, condition: float, residual: float = 0.0
) -> Terms:
    r"""√ε_n + condition · (T^{−1/4} + n^{−1/2})."""
    terms = {"residual": sqrt(residual), "optimisation": condition * iterations**-0.25, "statistics": condition / sqrt(samples)}
    return Terms(terms, trivial=3 * radius * feature_norm)


@statement(
    title="stochastic gradient ascent: least squared full-gradient norm over T steps",
    formula="min_t ‖∇J_S‖² ≤ (6 L_f/√T) ((6RC + 2R²C⁴/L_f) + (2R²C⁴/L_f) log T + log(1/ρ)/λ)",
    rate="log T / √T",
    assumptions=(
        *_LINEAR,
        "step 1/(2 L_f √t), one prompt a step",
        "(e^λ − λ − 1)/λ ≤ L_f / (8R²C⁴)",
        "the iterate of least *full* gradient norm is returned",
    ),
    citation=f"{_PAPER}, before Theorem 6",
    status="found",
)
def stability_stochastic_ascent_norm(
    *, iterations: float, radius: float, feature_norm: float, smoothness: float, mixing: float, delta: float = 0.05
) -> Terms:
    r"""A bound on the *squared* norm, in three terms."""
    scale = 6 * smoothness / sqrt(iterations)
    noise = 2 * radius**2 * feature_norm**4 / smoothness
    terms = {
        "start": scale * (6 * radius * feature_norm + noise),
        "noise": scale * noise * log(iterations),
        "confidence": scale * log(1 / delta) / mixing,
    }
    return Terms(terms, trivial=(4 * radius * feature_norm**2 / 3) ** 2)


@statement(
    title="Theorems 6 and 7, stochastic gradient ascent",
    formula="E_stab, sub-optimality ≲ √ε_n + (√Γ_SS + √Γ_SS')(T^{−1/8} + n^{−1/2})",
    rate="T^{−1/8} + 1/√n",
    assumptions=(*_LINEAR, _A5, "constants and logarithms are not printed with the statement: taken as 1"),
    citation=f"{_PAPER}, Theorems 6 and 7",
    status="provisional",
)
def stability_stochastic_ascent(
    *, samples: float, iterations: float, radius: float, feature_norm: float, condition: float, residual: float = 0.0
) -> Terms:
    r"""√ε_n + condition · (T^{−1/8} + n^{−1/2})."""
    terms = {
        "residual": sqrt(residual),
        "optimisation": condition * iterations**-0.125,
        "statistics": condition / sqrt(samples),
    }
    return Terms(terms, trivial=3 * radius * feature_norm)
