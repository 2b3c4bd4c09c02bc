"""Sample complexity of reverse-KL regularised learning from preferences with K references.

Throughout: n pairs drawn from a law μ, Bradley–Terry labels, true and candidate rewards in [0, R], a finite class that holds the truth,
r̂ its maximum-likelihood member, L = log(|R|/δ), γ = 1/β. The number of references enters through the coverage constant alone.
"""

from __future__ import annotations

from math import exp, log, sqrt

from multiref.bounds.statement import Terms, statement

__all__ = [
    "maximum_likelihood",
    "reverse_kl_5_2",
    "reverse_kl_from_references",
    "reverse_kl_plain_reward",
    "reverse_kl_suboptimality",
    "reverse_kl_versus_comparator",
]

_PAPER = "Aminian, Asadi, Shenfeld, Mroueh, arXiv 2502.01203"
_CLASS = (
    "true reward and every candidate in [0, R]",
    "finite class of candidates that holds the true reward",
    "preferences follow Bradley–Terry",
    "n pairs drawn independently from one law μ per prompt",
)
_PATH = "coverage: π_s ≤ C μ for every policy π_s ∝ pool · exp(γ(r* + s(r̂ − r*))), 0 ≤ s ≤ 1"


def _regularised_range(reward_max: float, beta: float) -> float:
    """No estimate in [0, R] gives away more: (γ/2)·sup Var(r̂ − r*) ≤ γR²/2, and E_π̂[g] − E_π*[g] ≤ 2R."""
    return min(2 * reward_max, reward_max**2 / (2 * beta))


@statement(
    title="error of the maximum-likelihood reward (Lemma M)",
    formula="E_x Var_μ(r̂ − r*) ≤ 16 e^{2R} L / n",
    rate="1/n",
    assumptions=_CLASS,
    citation="derived; proof M in docs/bounds.md",
    status="derived",
)
def maximum_likelihood(*, samples: float, reward_max: float, class_size: float, delta: float = 0.05) -> Terms:
    r"""E_x Var_μ(r̂ − r*) ≤ 16 e^{2R} log(|R|/δ) / n, with probability at least 1 − δ."""
    bound = 16 * exp(2 * reward_max) * log(class_size / delta) / samples
    return Terms({"estimation": bound}, trivial=reward_max**2)


@statement(
    title="Theorem 5.2, sub-optimality in the regularised objective, as printed",
    formula="J(π*) − J(π_r̂) ≤ γ C · 128 e^{4R} R² · L / n",
    rate="γ/n",
    assumptions=(
        *_CLASS,
        "coverage C over a KL ball around the geometric pool (the definition's text is not available; this is our reading)",
    ),
    citation=f"{_PAPER}, Theorem 5.2",
    status="found",
)
def reverse_kl_5_2(
    *, samples: float, beta: float, coverage: float, reward_max: float, class_size: float, delta: float = 0.05
) -> Terms:
    r"""γ C · 128 e^{4R} R² log(|R|/δ) / n. Implied sample size: n ≥ 128 γ C e^{4R} R² L / ε."""
    bound = coverage / beta * 128 * exp(4 * reward_max) * reward_max**2 * log(class_size / delta) / samples
    return Terms({"estimation": bound}, trivial=_regularised_range(reward_max, beta))


@statement(
    title="sub-optimality in the regularised objective (R1)",
    formula="J(π*) − J(π_r̂) = γ ∫₀¹ s Var_{π_s}(r̂ − r*) ds ≤ 8 γ C e^{2R} L / n",
    rate="γ/n",
    assumptions=(*_CLASS, _PATH),
    citation="derived; proof R1 in docs/bounds.md",
    status="derived",
)
def reverse_kl_suboptimality(
    *, samples: float, beta: float, coverage: float, reward_max: float, class_size: float, delta: float = 0.05
) -> Terms:
    r"""8 γ C e^{2R} log(|R|/δ) / n."""
    bound = 8 * coverage / beta * exp(2 * reward_max) * log(class_size / delta) / samples
    return Terms({"estimation": bound}, trivial=_regularised_range(reward_max, beta))


@statement(
    title="plain-reward gap at the same strength (R2); Theorem 5.3 prints the rate, its constants are not available",
    formula="|E_π* r* − E_π_r̂ r*| ≤ 2 γ R e^{R} √(C L / n)",
    rate="γ/√n",
    assumptions=(*_CLASS, _PATH),
    citation=f"rate found: {_PAPER}, Theorem 5.3; constants derived: proof R2 in docs/bounds.md",
    status="derived",
)
def reverse_kl_plain_reward(
    *, samples: float, beta: float, coverage: float, reward_max: float, class_size: float, delta: float = 0.05
) -> Terms:
    r"""2 γ R e^R √(C log(|R|/δ) / n)."""
    bound = 2 / beta * reward_max * exp(reward_max) * sqrt(coverage * log(class_size / delta) / samples)
    return Terms({"estimation": bound}, trivial=reward_max)


@statement(
    title="plain-reward gap against any comparator q (R3)",
    formula="E_q r* − E_π_r̂ r* ≤ 8 γ C e^{2R} L / n + β log sup(q / pool)",
    rate="1/√n where β ∝ 1/√n and C stays bounded as β falls (it need not)",
    assumptions=(*_CLASS, _PATH, "q has no mass where the geometric pool has none"),
    citation="derived; proof R3 in docs/bounds.md",
    status="derived",
)
def reverse_kl_versus_comparator(
    *,
    samples: float,
    beta: float,
    coverage: float,
    reward_max: float,
    class_size: float,
    log_comparator: float,
    delta: float = 0.05,
) -> Terms:
    r"""8 γ C e^{2R} log(|R|/δ) / n + β log sup(q / pool)."""
    estimation = 8 * coverage / beta * exp(2 * reward_max) * log(class_size / delta) / samples
    return Terms({"estimation": estimation, "regularisation": beta * log_comparator}, trivial=reward_max)


@statement(
    title="sub-optimality when pairs come from the references themselves",
    formula="J(π*) − J(π_r̂) ≤ 8 γ (e^{γR} / F) e^{2R} L / n",
    rate="γ/n, times 1/F, which grows exponentially with completion length",
    assumptions=(*_CLASS, "μ = Σ_k w_k π_k, so that pool ≤ μ / F (arithmetic–geometric means)"),
    citation="derived; proof P in docs/bounds.md",
    status="derived",
)
def reverse_kl_from_references(
    *, samples: float, beta: float, disagreement: float, reward_max: float, class_size: float, delta: float = 0.05
) -> Terms:
    r"""8 γ e^{γR − log F} e^{2R} log(|R|/δ) / n: R1 with the only coverage that is guaranteed, C ≤ e^{γR}/F."""
    log_coverage = reward_max / beta + disagreement
    bound = 8 / beta * exp(log_coverage + 2 * reward_max) * log(class_size / delta) / samples
    return Terms({"estimation": bound}, trivial=_regularised_range(reward_max, beta))
