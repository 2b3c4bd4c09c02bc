r"""The hyper-gradient's response term from rollouts, as scalars whose derivative in the reward is the estimate.

    independent (E1)   (mean_{π_0} r − mean_{π_σ} r)/σ            two sets of rollouts; standard deviation ∝ 1/σ
    shared (E2)        mean_{π_0} (1 − w) r / σ,  w = π_σ/π_0     one set; deviation does not depend on σ
    covariance (E3)    β⁻¹ Ĉov_{π_0}(u, r)                        one policy, no σ, unbiased — for a Gibbs lower level

Add the direct term (the mean of the pair losses, differentiable in the reward) to any of them.
Rewards carry the gradient; weights and utilities are detached. Gibbs is assumed by `covariance`,
and by `shared` where its weights come from `shared_weights` rather than from two policies:
for a parametrised policy that has not reached the Gibbs policy they are biased; the claims measure by how much.
"""

from __future__ import annotations

from torch import Tensor

from multiref._logspace import check_beta
from multiref.bilevel.hypergradient import check_sigma
from multiref.errors import ArgumentError

__all__ = ["covariance", "independent", "shared", "shared_weights"]


def independent(lower_reward: Tensor, perturbed_reward: Tensor, *, sigma: float) -> Tensor:
    """[*B, n] rewards of rollouts of π_0, [*B, m] of π_σ → [*B]. Reference: arXiv 2309.01753; 2410.15610 as reconstructed."""
    return (lower_reward.mean(-1) - perturbed_reward.mean(-1)) / check_sigma(sigma)


def shared(reward: Tensor, weights: Tensor, *, sigma: float) -> Tensor:
    """[*B, n] rewards of rollouts of π_0, [*B, n] w = π_σ/π_0 there → [*B]. DERIVED."""
    return ((1 - weights.detach()) * reward).mean(-1) / check_sigma(sigma)


def shared_weights(payoff: Tensor, mean_payoff: Tensor, *, sigma: float, beta: float) -> Tensor:
    r"""[*B, n], [*B] → [*B, n]: the Gibbs weights to first order in the normaliser, w = e^{−σ (c − E c)/β}. DERIVED."""
    check_beta(beta)
    return (-check_sigma(sigma) * (payoff - mean_payoff.unsqueeze(-1)) / beta).exp()


def covariance(utility: Tensor, reward: Tensor, *, beta: float) -> Tensor:
    r"""[*B, m] utilities of independent units, [*B, m] their rewards → [*B]: β⁻¹ Σ_i (u_i − ū) r_i / (m − 1).

    A unit is whatever was drawn independently under π_0: a pair, with u its loss and r the sum of its two rewards (likelihood);
    a rollout with u its payoff (win rate). Unbiased for the response term in any case, because E[u (∇log π(y) + ∇log π(y'))] is
    what is estimated. DERIVED.

    Raises:
        ArgumentError: fewer than two units a prompt.
    """
    check_beta(beta)
    units = utility.shape[-1]
    if units < 2:
        raise ArgumentError(
            f"utility: found {units} unit a prompt, expected at least 2; a covariance needs two pairs of the same prompt"
        )
    centred = utility.detach() - utility.detach().mean(-1, keepdim=True)
    return (centred * reward).sum(-1) / ((units - 1) * beta)
