"""Sharp constants of learning from preferences under reverse KL: what is lost, exactly or to first order in 1/n.

Everything follows from one identity. With Δ = r̂ − r* and π̂ the optimum for r̂ (DERIVED, docs/bounds.md, U),

    J(π*) − J(π̂) = β log E_π̂[e^{−Δ/β}] + E_π̂[Δ]
"""

from collections.abc import Mapping
from math import inf

from multiref.bounds.statement import Statement


def _unbounded(q: Mapping[str, float]) -> float:
    """Errors are not bounded: there is no range that needs no theorem."""
    return inf


subgaussian_suboptimality = Statement(
    name="subgaussian-suboptimality",
    title="sub-optimality under unbounded, sub-Gaussian reward errors",
    formula="J(π*) − J(π_r̂) = β log E_π̂ e^{−Δ/β} + E_π̂ Δ ≤ s²/(2β),  Δ = r̂ − r*",
    rate="s²/β: 1/n where s² falls like 1/n",
    assumptions=("Δ is s-sub-Gaussian under the learnt policy π̂ (not under the data)", "π̂ is the optimum for r̂, reverse KL"),
    citation="derived; proof U in docs/bounds.md",
    status="derived",
    quantities="deviation beta",
    terms=lambda s, β: {"error": s**2 / (2 * β)},
    trivial=_unbounded,
    note="no bound on the rewards, and no truncation",
)
