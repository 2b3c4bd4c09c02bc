"""Sample complexity of forward-KL regularised learning from preferences with K references.

Notation of `reverse_kl`; the pool is the arithmetic one, π̄ = Σ_k w_k π_k. The printed rate 1/√n is the proof's: F2 gives 1/n at fixed β.
"""

from __future__ import annotations

from math import exp, log, sqrt

from multiref.bounds.statement import Terms, statement

__all__ = ["forward_kl_6_2", "forward_kl_fast", "forward_kl_slow", "forward_kl_versus_comparator"]

_PAPER = "Aminian, Asadi, Shenfeld, Mroueh, arXiv 2502.01203"
_CLASS = (
    "true reward and every candidate in [0, R]",
    "finite class of candidates that holds the true reward",
    "preferences follow Bradley–Terry",
    "n pairs drawn independently from one law μ per prompt",
)
_TWO = "coverage: π* ≤ C μ and π_r̂ ≤ C μ"


@statement(
    title="Theorem 6.2, sub-optimality in the regularised objective, as printed",
    formula="J(π*) − J(π_r̂) ≤ 16 C e^{2R} R √(L / n)",
    rate="1/√n",
    assumptions=(
        *_CLASS,
        "coverage C over a KL ball around the arithmetic pool (the definition's text is not available; this is our reading)",
    ),
    citation=f"{_PAPER}, Theorem 6.2",
    status="found",
)
def forward_kl_6_2(*, samples: float, coverage: float, reward_max: float, class_size: float, delta: float = 0.05) -> Terms:
    r"""16 C e^{2R} R √(log(|R|/δ) / n). Implied sample size: n ≥ 256 C² e^{4R} R² L / ε²."""
    bound = 16 * coverage * exp(2 * reward_max) * reward_max * sqrt(log(class_size / delta) / samples)
    return Terms({"estimation": bound}, trivial=2 * reward_max)


@statement(
    title="sub-optimality in the regularised objective, any regularizer (F1)",
    formula="J(π*) − J(π_r̂) ≤ (E_π_r̂ − E_π*)[r̂ − r*] ≤ 8 e^{R} √(C L / n)",
    rate="1/√n",
    assumptions=(*_CLASS, _TWO),
    citation="derived; proof F1 in docs/bounds.md",
    status="derived",
)
def forward_kl_slow(*, samples: float, coverage: float, reward_max: float, class_size: float, delta: float = 0.05) -> Terms:
    r"""8 e^R √(C log(|R|/δ) / n)."""
    bound = 8 * exp(reward_max) * sqrt(coverage * log(class_size / delta) / samples)
    return Terms({"estimation": bound}, trivial=2 * reward_max)


@statement(
    title="plain-reward gap against any comparator q (F1); Theorem 6.3 prints the rate at γ = n, its constants are not available",
    formula="E_q r* − E_π_r̂ r* ≤ 8 e^{R} √(C L / n) + β KL(π̄ ‖ q)",
    rate="1/√n at β = 1/n",
    assumptions=(*_CLASS, "coverage: q ≤ C μ and π_r̂ ≤ C μ", "q > 0 wherever the arithmetic pool is"),
    citation=f"rate found: {_PAPER}, Theorem 6.3; constants derived: proof F1 in docs/bounds.md",
    status="derived",
)
def forward_kl_versus_comparator(
    *,
    samples: float,
    beta: float,
    coverage: float,
    reward_max: float,
    class_size: float,
    comparator_kl: float,
    delta: float = 0.05,
) -> Terms:
    r"""8 e^R √(C log(|R|/δ) / n) + β KL(π̄ ‖ q)."""
    estimation = 8 * exp(reward_max) * sqrt(coverage * log(class_size / delta) / samples)
    return Terms({"estimation": estimation, "regularisation": beta * comparator_kl}, trivial=reward_max)


@statement(
    title="sub-optimality in the regularised objective, fast rate (F2)",
    formula="J(π*) − J(π_r̂) ≤ γ C² (1 + C² (1 + γR)) Var_π̄(r̂ − r*),  Var_π̄ ≤ C_μ · 16 e^{2R} L / n",
    rate="1/n at fixed β",
    assumptions=(*_CLASS, "coverage: π* ≤ C π̄ and π_r̂ ≤ C π̄", "sampling coverage: π̄ ≤ C_μ μ"),
    citation="derived; proof F2 in docs/bounds.md (independently: arXiv 2605.09214)",
    status="derived",
)
def forward_kl_fast(
    *,
    samples: float,
    beta: float,
    coverage: float,
    reward_max: float,
    class_size: float,
    sampling_coverage: float = 1.0,
    delta: float = 0.05,
) -> Terms:
    r"""γ C² (1 + C² (1 + γR)) · C_μ · 16 e^{2R} log(|R|/δ) / n."""
    variance = sampling_coverage * 16 * exp(2 * reward_max) * log(class_size / delta) / samples
    factor = coverage**2 / beta * (1 + coverage**2 * (1 + reward_max / beta))
    return Terms({"estimation": factor * variance}, trivial=2 * reward_max)
