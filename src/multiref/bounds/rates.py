"""Sharp constants of learning from preferences under reverse KL: what is lost, exactly or to first order in 1/n.

Everything follows from one identity. With Δ = r̂ − r* and π̂ the optimum for r̂ (DERIVED, docs/bounds.md, U),

    J(π*) − J(π̂) = β log E_π̂[e^{−Δ/β}] + E_π̂[Δ]
"""

from collections.abc import Mapping
from math import cosh, exp, expm1, inf, log, tanh

import torch
from torch import Tensor

from multiref.bounds.quantities import check_quantities
from multiref.bounds.statement import Statement
from multiref.errors import ArgumentError

_PRIVATE = ("labels went through ε-randomised response", "texts are not protected")


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
label_privacy_inflation = Statement(
    name="label-privacy-inflation",
    title="factor by which private labels raise the leading constant",
    formula="tr(V H_ε⁻¹) ≤ c²/(4σ'(R)) tr(V H⁻¹),  c = (e^ε + 1)/(e^ε − 1)",
    rate="1/ε² as ε → 0, 1/(4σ'(R)) as ε → ∞",
    assumptions=(*_PRIVATE, "margins of the true reward at most R", "the loss is the private likelihood"),
    citation="derived; proof A in docs/bounds.md",
    status="derived",
    quantities="epsilon reward_max",
    terms=lambda ε, R: {"flips": cosh(R / 2) ** 2 / tanh(ε / 2) ** 2},
    trivial=_unbounded,
    note="the exact factor is a ratio of traces: `asymptotic_suboptimality`; c² alone where margins are small",
)
label_privacy_printed = Statement(
    name="label-privacy-printed",
    title="the factor of arXiv 2510.13512, as printed",
    formula="1/(e^ε − 1)²",
    rate="1/ε² as ε → 0",
    assumptions=(
        *_PRIVATE,
        "ε ≤ 1: there c² is (e^ε + 1)² = 4 to 14 times it; from ε = log 2 on it is below 1, as if privacy helped",
    ),
    citation="Wu, Thareja, Vepakomma, Orabona, arXiv 2510.13512, abstract",
    status="provisional",
    quantities="small_epsilon",
    terms=lambda ε: {"flips": 1 / expm1(ε) ** 2},
    trivial=_unbounded,
)
own_pairs_suboptimality = Statement(
    name="own-pairs-suboptimality",
    title="sub-optimality from pairs of the optimum itself",
    formula="J(π*) − J(π_r̂) ≤ d/(4βσ'(R)n) to first order, for pairs drawn from π*",
    rate="1/n, without coverage",
    assumptions=(
        "reward linear in d features, maximum likelihood",
        "both completions of a pair from π*",
        "margins at most R",
        "n large",
    ),
    citation="derived; proof A in docs/bounds.md",
    status="derived",
    quantities="samples beta dimension reward_max",
    terms=lambda n, β, d, R: {"estimation": d * cosh(R / 2) ** 2 / (β * n)},
    trivial=lambda q: min(2 * q["reward_max"], q["reward_max"] ** 2 / (2 * q["beta"])),
    note="H ⪰ 2σ'(R)V where pairs come from π*; the exact constant is `asymptotic_suboptimality`",
)


two_stage = Statement(
    name="two-stage",
    title="labels that two-stage sampling needs for a gap of ε",
    formula="m = η² D² e^B log(2N/δ) pairs of the reference, n = (η/ε) e^B log(N/δ) of the first stage's policy, η = 1/β",
    rate="η²D² + η/ε: coverage adds to the labels instead of multiplying them",
    assumptions=(
        "rewards in [0, B]",
        "D²: the paper's data coverage, given as `coverage`",
        "constants are not printed: taken as 1",
    ),
    citation="Zhao, Ye, Gu, Zhang, arXiv 2411.04625, Theorem 4.7 (Theorem 3.8, rewards observed, has B² for e^B)",
    status="provisional",
    quantities="beta coverage reward_max class_size target delta?",
    terms=lambda β, D2, B, N, ε, δ: {
        "first stage": D2 * exp(B) * log(2 * N / δ) / β**2,
        "second stage": exp(B) * log(N / δ) / (β * ε),
    },
    trivial=_unbounded,
    note="a number of labels, not a gap",
)
two_stage_least = Statement(
    name="two-stage-least",
    title="labels that any method needs for a gap of ε",
    formula="n = min(η log N/ε, log N/ε²), η = 1/β",
    rate="η/ε, or 1/ε² where ε > β",
    assumptions=("η > 4 and ε < 1/256", "of the worst of all problems", "constants are not printed: taken as 1"),
    citation="Zhao, Ye, Gu, Zhang, arXiv 2411.04625, Theorems 3.6 and 4.6",
    status="provisional",
    quantities="small_beta class_size small_target",
    terms=lambda β, N, ε: {"labels": min(log(N) / (β * ε), log(N) / ε**2)},
    trivial=_unbounded,
    note="a lower bound, and a number of labels, not a gap",
)
pessimism_suboptimality = Statement(
    name="pessimism-suboptimality",
    title="sub-optimality of the optimum for r̂ − Γ",
    formula="J(π*) − J(π_{r̂−Γ}) ≤ (2/β) E_π*[Γ²]",
    rate="1/n where Γ² falls like 1/n, with coverage of π* alone",
    assumptions=("|r̂ − r* − b(x)| ≤ Γ for every completion, b any function of the prompt", "reverse KL"),
    citation="derived; proof G in docs/bounds.md (half of the 4/β that arXiv 2510.13512's argument gives)",
    status="derived",
    quantities="beta squared_width",
    terms=lambda β, squared_width: {"error": 2 * squared_width / β},
    trivial=_unbounded,
    note="Γ of a linear reward: `pessimism`",
)


def pessimism(features: Tensor, base_logps: Tensor, information: Tensor, *, width: float) -> Tensor:
    r"""[*B, Y, d], [*B, Y], [d, d] → [*B, Y]: Γ = w ‖φ(x, y) − E_{π_0} φ(x, ·)‖_{Σ⁻¹}, to be taken off the estimated reward.

    The most by which ⟨θ, φ − E φ⟩ may differ for parameters within ‖θ − θ̂‖_Σ ≤ w.

    Args:
        features: of a linear reward. base_logps: log π_0, normalised or not, as the geometric pool.
        information: Σ, positive definite. width: w, the radius of the confidence set.

    Raises:
        ArgumentError: a Σ that is not positive definite, or of another size.

    Reference: the linear case of arXiv 2510.13512's pessimism (DERIVED in the notation of 2502.06051).
    """
    factor, failed = torch.linalg.cholesky_ex(information.double())
    if information.shape != features.shape[-1:] * 2 or int(failed):
        raise ArgumentError("information: expected a positive definite [d, d] for features [*B, Y, d].")
    law = base_logps.double().softmax(-1)
    centred = features.double() - (law[..., None] * features.double()).sum(-2, keepdim=True)
    lengths: Tensor = torch.linalg.solve_triangular(factor, centred.mT, upper=False).norm(dim=-2)
    return width * lengths


def asymptotic_suboptimality(variance: Tensor, information: Tensor, *, beta: float, samples: float) -> float:
    r"""V [d, d], H [d, d] → tr(V H⁻¹)/(2βn): what maximum likelihood on n pairs gives away, to first order in 1/n.

        J(π*) − J(π_r̂) = (1/(2β)) (θ̂ − θ)ᵀ V (θ̂ − θ) + …,      θ̂ − θ ~ N(0, H⁻¹/n)

    Args:
        variance: V = E_x Cov_{π*}[φ], of the features of a linear reward under the optimum.
        information: H, the Fisher information of one labelled pair: E[σ'(m) Δφ Δφᵀ]; of flipped labels, theirs.
        beta: β.
        samples: n.

    Raises:
        ArgumentError: matrices that do not match, or directions that V sees and H does not (pairs that say nothing of them).

    Reference: DERIVED; proof A in docs/bounds.md.
    """
    check_quantities("asymptotic_suboptimality", {"beta": beta, "samples": samples})
    V, H = variance.double(), information.double()
    if V.ndim != 2 or V.shape != H.shape or V.shape[0] != V.shape[1]:
        raise ArgumentError(f"variance, information: expected two [d, d], found {tuple(V.shape)} and {tuple(H.shape)}.")
    values, vectors = torch.linalg.eigh(0.5 * (H + H.mT))
    seen = values > 1e-12 * values[-1].clamp_min(1e-300)
    along = torch.einsum("de,df,fe->e", vectors, V, vectors)
    if bool((along[~seen] > 1e-10 * V.diagonal().sum()).any()):
        raise ArgumentError(
            "information: pairs say nothing of a direction in which the optimum's completions differ. "
            "Expected an H that is positive there: give pairs that differ in that direction, or leave the feature out."
        )
    return float((along[seen] / values[seen]).sum() / (2 * beta * samples))
