"""Reward shift, clipped log-ratios and budgets: arXiv 2602.21765, and what scores say of its χ²."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from multiref._logspace import Weights, check_logps, check_weights
from multiref.bounds.quantities import check_positive, check_quantities
from multiref.bounds.statement import Statement
from multiref.errors import ArgumentError
from multiref.pools import power_pool


def sampling_error(samples: float, rollouts: float, delta: float) -> float:
    """α = √(log(4/δ)/2n) + √(log(4/δ)/2nK): n prompts, K rollouts each."""
    return sqrt(math.log(4 / delta) / (2 * samples)) + sqrt(math.log(4 / delta) / (2 * samples * rollouts))


def _range(q: Mapping[str, float]) -> float:
    """Of the clipped objective, and what clipping hides."""
    return 1 + 2 * q["beta"] * q["tau"] + q["beta"] * q["clip_bias"]


reward_shift = Statement(
    name="reward-shift",
    title="a fixed policy's clipped, learnt-reward objective against the true one",
    formula="|Ĵ − J*| ≤ (1 + 2βτ)α + √(1 + χ²) √L₂ + β E|ℓ − ℓ^τ|,  α = √(log(4/δ)/2n) + √(log(4/δ)/2nK)",
    rate="1/√n, to a floor of reward shift and clipping",
    assumptions=(
        "rewards, true and learnt, in [0, 1]",
        "n prompts, K fresh rollouts each, of a policy that does not depend on them",
        "χ² of the policy to the reward model's training law Σ_k w_k π_k (an estimate from scores is no bound)",
        "L₂: the reward model's mean squared error under that law",
    ),
    citation="Tang, Chen, He, arXiv 2602.21765, Theorem 1",
    status="found",
    quantities="samples rollouts beta tau chi_squared squared_error clip_bias delta?",
    terms=lambda n, K, β, τ, χ2, L2, bias, δ: {
        "sampling": (1 + 2 * β * τ) * sampling_error(n, K, δ),
        "reward shift": sqrt(1 + χ2) * sqrt(L2),
        "clipping": β * bias,
    },
    trivial=_range,
)
reward_shift_average = Statement(
    name="reward-shift-average",
    title="the same on average over policies chosen by the rollouts (PAC-Bayes)",
    formula="E_Q|Ĵ − J*| ≤ (1 + 2βτ)(√(k_n/2n) + √(k_nK/2nK)) + √(1 + χ²) √L₂ + β E|ℓ − ℓ^τ|,  k_m = KL(Q‖P) + log(4√m/δ)",
    rate="√(KL/n), to a floor of reward shift and clipping",
    assumptions=(
        *reward_shift.assumptions[:1],
        "n prompts, K rollouts each, of every policy from the same random numbers, which depend on none of them",
        "P does not depend on prompts and rollouts; Q, over policies, may",
        "χ² and E|ℓ − ℓ^τ| averaged over Q",
        *reward_shift.assumptions[3:],
    ),
    citation="derived; proof B in docs/bounds.md, for Theorem 2 of arXiv 2602.21765, whose constants are not available",
    status="derived",
    quantities="samples rollouts beta tau chi_squared squared_error clip_bias posterior_kl delta?",
    terms=lambda n, K, β, τ, χ2, L2, bias, kl, δ: {
        "sampling": (1 + 2 * β * τ) * sum(sqrt((kl + math.log(4 * sqrt(m) / δ)) / (2 * m)) for m in (n, n * K)),
        "reward shift": sqrt(1 + χ2) * sqrt(L2),
        "clipping": β * bias,
    },
    trivial=_range,
    note="Q = P is a fixed policy with log √n more; uniform P over N policies: KL at most log N; SGD: `sgd_posterior_kl`",
)


def sgd_posterior_kl(
    weights: Tensor, curvature: Tensor, noise: Tensor, *, learning_rate: float, batch: float, deviation: float
) -> float:
    r"""[d], [d, d], [d, d] → KL(Q‖N(0, s²I)), Q = N(θ̂, Σ) what constant-rate SGD settles to around θ̂ (Ornstein–Uhlenbeck).

        HΣ + ΣH = (η/B) C,      KL = ½ (tr Σ/s² + ‖θ̂‖²/s² − d + d log s² − log det Σ)

    Args:
        weights: θ̂. curvature: H of the loss there, positive definite. noise: C, the covariance of one example's gradient.
        learning_rate, batch: η and B. deviation: s of the prior.

    Raises:
        ArgumentError: a number that is not positive, an H that is not positive definite, noise that leaves a direction out.

    Reference: DERIVED, to first order in η; for `reward_shift_average`.
    """
    check_positive(learning_rate=learning_rate, batch=batch, deviation=deviation)
    theta, d = weights.double(), len(weights)
    values, vectors = torch.linalg.eigh(curvature.double())
    spread = learning_rate / batch * (vectors.mT @ noise.double() @ vectors) / (values[:, None] + values)
    factor, failed = torch.linalg.cholesky_ex(spread)
    if float(values[0]) <= 0 or int(failed):
        raise ArgumentError("curvature, noise: expected positive definite matrices; leave out what is flat or has no noise.")
    size = (spread.trace() + theta @ theta) / deviation**2
    return float(0.5 * (size - d + d * math.log(deviation**2)) - factor.diagonal().log().sum())


def clip_quantile(*, samples: float, rollouts: float, delta: float = 0.05) -> float:
    r"""1 − 2α: the τ at this quantile of |ℓ| minimises the *bound* `reward_shift`, (1 + 2βτ)α + βE|ℓ − ℓ^τ|; not the error.

    The actual error there was 3.1 times that of the best τ in the median of 200 worlds, and 16 times in the worst
    (docs/claims.md, clip-quantile). α as in `reward_shift`; a τ chosen on the same samples is a heuristic.

    Raises:
        ArgumentError: n ≤ 0, K below 1, δ outside (0, 1), or so few samples that α ≥ ½ and no τ > 0 is best.

    Reference: arXiv 2602.21765 (FOUND).
    """
    check_quantities("clip_quantile", {"samples": samples, "rollouts": rollouts, "delta": delta})
    if (alpha := sampling_error(samples, rollouts, delta)) >= 0.5:
        raise ArgumentError(f"samples: α = {alpha:.3g} ≥ ½ at n = {samples:g}, K = {rollouts:g}; the bound is least at τ = 0.")
    return 1 - 2 * alpha


def rollouts_per_prompt(
    prefill: float, decode: float, *, rollout_deviation: float | None = None, prompt_deviation: float | None = None
) -> float:
    r"""How many rollouts K of each prompt make most of a budget; not rounded, at least 1.

        K* = (c_pre/c_dec)^{2/3}                      minimises √(c_pre + K c_dec) (1 + K^{−1/2}), the *bound* at fixed cost
        K* = √((c_pre/c_dec) σ_r²/σ_p²)               minimises (c_pre + K c_dec)(σ_p² + σ_r²/K), the variance at fixed cost

    Args:
        prefill, decode: what a prompt costs, and a rollout of it.
        rollout_deviation, prompt_deviation: σ_r of rollouts of a prompt, σ_p of the prompts' means, for the second form: both
            or none.

    Raises:
        ArgumentError: a number that is not positive, or one deviation without the other.

    Reference: arXiv 2602.21765 (FOUND; derived again).
    """
    check_positive(prefill=prefill, decode=decode)
    if (rollout_deviation is None) != (prompt_deviation is None):
        raise ArgumentError("rollout_deviation, prompt_deviation: expected both or none.")
    if rollout_deviation is None or prompt_deviation is None:
        return max(1.0, math.pow(prefill / decode, 2 / 3))
    check_positive(rollout_deviation=rollout_deviation, prompt_deviation=prompt_deviation)
    return max(1.0, sqrt(prefill / decode) * rollout_deviation / prompt_deviation)


def prompts_and_pairs(
    prompt_error: float, pair_error: float, *, prompt_cost: float, pair_cost: float, budget: float
) -> tuple[float, float]:
    r"""(n, N) that minimise a/√n + b/√N at the cost c₁n + c₂N: prompts to roll out, preference pairs for the reward.

        n/N = (a c₂/(b c₁))^{2/3}

    Args:
        prompt_error, pair_error: a and b. prompt_cost, pair_cost: c₁ (a prompt with its rollouts) and c₂.

    Raises:
        ArgumentError: a number that is not positive.

    Reference: arXiv 2602.21765 mentions the split; DERIVED.
    """
    check_positive(
        prompt_error=prompt_error, pair_error=pair_error, prompt_cost=prompt_cost, pair_cost=pair_cost, budget=budget
    )
    ratio = math.pow(prompt_error * pair_cost / (pair_error * prompt_cost), 2 / 3)
    pairs = budget / (prompt_cost * ratio + pair_cost)
    return ratio * pairs, pairs


@dataclass(frozen=True)
class ChiSquared:
    """χ² of a policy to Σ_k w_k π_k, from scores of the policy's own completions. An estimate, not a bound.

    Attributes:
        value: mean of π/μ − 1; error: its standard error; both too small where the heavy ratios were not drawn, and +∞ where
            one was that no reference gives mass.
        effective_samples: (Σ ρ)²/Σ ρ² of the ratios ρ = π/μ: how many completions the mean rests on.
        samples: N.
    """

    value: float
    error: float
    effective_samples: float
    samples: int

    def __str__(self) -> str:
        return (
            f"χ² {self.value:.4g} ± {self.error:.2g} (estimate, not a bound; effective samples "
            f"{self.effective_samples:.1f} of {self.samples})"
        )


def chi_squared_from_scores(policy_logps: Tensor, ref_logps: Tensor, weights: Weights = None) -> ChiSquared:
    r"""[N] log π, [K, N] log π_k of completions that the policy drew → χ²(π‖μ) = E_π[π/μ] − 1, μ = Σ_k w_k π_k.

    Raises:
        ArgumentError: shapes that do not match, no completion, NaN or log-probabilities above zero.
    """
    if ref_logps.ndim != 2 or policy_logps.shape != ref_logps.shape[1:] or not policy_logps.numel():
        raise ArgumentError(
            f"ref_logps: expected [K, N] against policy_logps [N], N ≥ 1, found {tuple(ref_logps.shape)} and "
            f"{tuple(policy_logps.shape)}."
        )
    check_logps(policy_logps, "policy_logps")
    log_ratio = policy_logps.double() - power_pool(ref_logps.double(), check_weights(weights, len(ref_logps)), order=1.0)
    n = log_ratio.numel()
    if bool((missed := log_ratio == math.inf).any()):
        return ChiSquared(math.inf, math.inf, float(missed.sum()), n)
    top = log_ratio.max()
    scaled = (log_ratio - top).exp()
    mean = float(top.exp() * scaled.mean())
    error = float(top.exp() * scaled.std() / math.sqrt(n)) if n > 1 and mean < math.inf else math.inf
    return ChiSquared(max(mean - 1, 0.0), error, float(scaled.sum() ** 2 / (scaled**2).sum()), n)
