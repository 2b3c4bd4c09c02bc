"""Sample complexity of regularised learning from preferences with K references.

Throughout: n pairs drawn from a law μ, Bradley–Terry labels, true and candidate rewards in [0, R],
a finite class of N that holds the truth, r̂ its maximum-likelihood member, L = log(N/δ), γ = 1/β.
The number of references enters through the coverage constant C alone. Reverse KL has the geometric pool;
forward KL the arithmetic one, π̄ = Σ_k w_k π_k, and there the printed rate 1/√n is the proof's: F2 gives 1/n at fixed β.
"""

from collections.abc import Mapping
from functools import partial
from math import exp, log, sqrt

from multiref.bounds.statement import Statement

_PAPER = "Aminian, Asadi, Shenfeld, Mroueh, arXiv 2502.01203"
_CLASS = (
    "true reward and every candidate in [0, R]",
    "finite class of candidates that holds the true reward",
    "preferences follow Bradley–Terry",
    "n pairs drawn independently from one law μ per prompt",
)
_PATH = "coverage: π_s ≤ C μ for every policy π_s ∝ pool · exp(γ(r* + s(r̂ − r*))), 0 ≤ s ≤ 1"
_BALL = "coverage C over a KL ball around the {} pool (the definition's text is not available; this is our reading)"
_GAP = "sub-optimality in the regularised objective"


def _regularised_range(q: Mapping[str, float]) -> float:
    """No estimate in [0, R] gives away more: (γ/2)·sup Var(r̂ − r*) ≤ γR²/2, and E_π̂[g] − E_π*[g] ≤ 2R."""
    return min(2 * q["reward_max"], q["reward_max"] ** 2 / (2 * q["beta"]))


def _twice_the_range(q: Mapping[str, float]) -> float:
    return 2 * q["reward_max"]


def _reward_range(q: Mapping[str, float]) -> float:
    return q["reward_max"]


_found = partial(Statement, status="found", quantities="samples beta coverage reward_max class_size delta?")
_derived = partial(Statement, status="derived", quantities="samples beta coverage reward_max class_size delta?")

maximum_likelihood = _derived(
    name="maximum-likelihood",
    title="error of the maximum-likelihood reward (Lemma M)",
    formula="E_x Var_μ(r̂ − r*) ≤ 16 e^{2R} L / n",
    rate="1/n",
    assumptions=_CLASS,
    citation="derived; proof M in docs/bounds.md",
    quantities="samples reward_max class_size delta?",
    terms=lambda n, R, N, δ: {"estimation": 16 * exp(2 * R) * log(N / δ) / n},
    trivial=lambda q: q["reward_max"] ** 2,
    note="holds with probability at least 1 − δ, as every statement here",
)
reverse_kl_5_2 = _found(
    name="reverse-kl-5-2",
    title=f"Theorem 5.2, {_GAP}, as printed",
    formula="J(π*) − J(π_r̂) ≤ γ C · 128 e^{4R} R² · L / n",
    rate="γ/n",
    assumptions=(*_CLASS, _BALL.format("geometric")),
    citation=f"{_PAPER}, Theorem 5.2",
    terms=lambda n, β, C, R, N, δ: {"estimation": C / β * 128 * exp(4 * R) * R**2 * log(N / δ) / n},
    trivial=_regularised_range,
    note="implied sample size: n ≥ 128 γ C e^{4R} R² L / ε",
)
reverse_kl_suboptimality = _derived(
    name="reverse-kl-suboptimality",
    title=f"{_GAP} (R1)",
    formula="J(π*) − J(π_r̂) = γ ∫₀¹ s Var_{π_s}(r̂ − r*) ds ≤ 8 γ C e^{2R} L / n",
    rate="γ/n",
    assumptions=(*_CLASS, _PATH),
    citation="derived; proof R1 in docs/bounds.md",
    terms=lambda n, β, C, R, N, δ: {"estimation": 8 * C / β * exp(2 * R) * log(N / δ) / n},
    trivial=_regularised_range,
)
reverse_kl_plain_reward = _derived(
    name="reverse-kl-plain-reward",
    title="plain-reward gap at the same strength (R2); Theorem 5.3's rate",
    formula="|E_π* r* − E_π_r̂ r*| ≤ 2 γ R e^{R} √(C L / n)",
    rate="γ/√n",
    assumptions=(*_CLASS, _PATH),
    citation=f"rate found: {_PAPER}, Theorem 5.3; constants derived: proof R2 in docs/bounds.md",
    terms=lambda n, β, C, R, N, δ: {"estimation": 2 / β * R * exp(R) * sqrt(C * log(N / δ) / n)},
    trivial=_reward_range,
    note="Theorem 5.3 prints the rate; its constants are not available",
)
reverse_kl_versus_comparator = _derived(
    name="reverse-kl-versus-comparator",
    title="plain-reward gap against any comparator q (R3)",
    formula="E_q r* − E_π_r̂ r* ≤ 8 γ C e^{2R} L / n + β log sup(q / pool)",
    rate="1/√n where β ∝ 1/√n and C stays bounded as β falls (it need not)",
    assumptions=(*_CLASS, _PATH, "q has no mass where the geometric pool has none"),
    citation="derived; proof R3 in docs/bounds.md",
    quantities="samples beta coverage reward_max class_size log_comparator delta?",
    terms=lambda n, β, C, R, N, log_sup, δ: {
        "estimation": 8 * C / β * exp(2 * R) * log(N / δ) / n,
        "regularisation": β * log_sup,
    },
    trivial=_reward_range,
)
reverse_kl_from_references = _derived(
    name="reverse-kl-from-references",
    title="sub-optimality when pairs come from the references themselves",
    formula="J(π*) − J(π_r̂) ≤ 8 γ (e^{γR} / F) e^{2R} L / n",
    rate="γ/n, times 1/F, which grows exponentially with completion length",
    assumptions=(*_CLASS, "μ = Σ_k w_k π_k, so that pool ≤ μ / F (arithmetic–geometric means)"),
    citation="derived; proof P in docs/bounds.md",
    quantities="samples beta disagreement reward_max class_size delta?",
    terms=lambda n, β, minus_log_F, R, N, δ: {"estimation": 8 / β * exp(R / β + minus_log_F + 2 * R) * log(N / δ) / n},
    trivial=_regularised_range,
    note="R1 with the only coverage that is guaranteed, C ≤ e^{γR}/F",
)
forward_kl_6_2 = _found(
    name="forward-kl-6-2",
    title=f"Theorem 6.2, {_GAP}, as printed",
    formula="J(π*) − J(π_r̂) ≤ 16 C e^{2R} R √(L / n)",
    rate="1/√n",
    assumptions=(*_CLASS, _BALL.format("arithmetic")),
    citation=f"{_PAPER}, Theorem 6.2",
    quantities="samples coverage reward_max class_size delta?",
    terms=lambda n, C, R, N, δ: {"estimation": 16 * C * exp(2 * R) * R * sqrt(log(N / δ) / n)},
    trivial=_twice_the_range,
    note="implied sample size: n ≥ 256 C² e^{4R} R² L / ε²",
)
forward_kl_slow = _derived(
    name="forward-kl-slow",
    title=f"{_GAP}, any regularizer (F1)",
    formula="J(π*) − J(π_r̂) ≤ (E_π_r̂ − E_π*)[r̂ − r*] ≤ 8 e^{R} √(C L / n)",
    rate="1/√n",
    assumptions=(*_CLASS, "coverage: π* ≤ C μ and π_r̂ ≤ C μ"),
    citation="derived; proof F1 in docs/bounds.md",
    quantities="samples coverage reward_max class_size delta?",
    terms=lambda n, C, R, N, δ: {"estimation": 8 * exp(R) * sqrt(C * log(N / δ) / n)},
    trivial=_twice_the_range,
)
forward_kl_versus_comparator = _derived(
    name="forward-kl-versus-comparator",
    title="plain-reward gap against any q (F1); Theorem 6.3's rate",
    formula="E_q r* − E_π_r̂ r* ≤ 8 e^{R} √(C L / n) + β KL(π̄ ‖ q)",
    rate="1/√n at β = 1/n",
    assumptions=(*_CLASS, "coverage: q ≤ C μ and π_r̂ ≤ C μ", "q > 0 wherever the arithmetic pool is"),
    citation=f"rate found: {_PAPER}, Theorem 6.3; constants derived: proof F1 in docs/bounds.md",
    quantities="samples beta coverage reward_max class_size comparator_kl delta?",
    terms=lambda n, β, C, R, N, kl, δ: {
        "estimation": 8 * exp(R) * sqrt(C * log(N / δ) / n),
        "regularisation": β * kl,
    },
    trivial=_reward_range,
    note="Theorem 6.3 prints the rate at γ = n; its constants are not available",
)
forward_kl_fast = _derived(
    name="forward-kl-fast",
    title=f"{_GAP}, fast rate (F2)",
    formula="J(π*) − J(π_r̂) ≤ γ C² (1 + C² (1 + γR)) Var_π̄(r̂ − r*),  Var_π̄ ≤ C_μ · 16 e^{2R} L / n",
    rate="1/n at fixed β",
    assumptions=(*_CLASS, "coverage: π* ≤ C π̄ and π_r̂ ≤ C π̄", "sampling coverage: π̄ ≤ C_μ μ"),
    citation="derived; proof F2 in docs/bounds.md (independently: arXiv 2605.09214)",
    quantities="samples beta coverage reward_max class_size sampling_coverage? delta?",
    terms=lambda n, β, C, R, N, C_μ, δ: {
        "estimation": C**2 / β * (1 + C**2 * (1 + R / β)) * (C_μ * 16 * exp(2 * R) * log(N / δ) / n)
    },
    trivial=_twice_the_range,
)
