"""Sampled hyper-gradients on linear worlds, for all seeds at once: what each estimator does with a budget of rollouts and
labels.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from multiref.bilevel import Likelihood, covariance, independent, perturbed_policy, shared
from multiref.errors import ArgumentError
from multiref_lab.races.world import LinearWorld

# Completions drawn for each labelled pair: two for the pair; two more from each of two policies, or two more from one.
ROLLOUTS = {"two_policies": 6, "shared_rollouts": 4, "covariance": 2, "conjugate_gradient": 2}
ESTIMATORS = tuple(ROLLOUTS)


def _draw(log_policy: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """[S, X, Y] → [S, X, n]."""
    flat = torch.multinomial(log_policy.exp().flatten(0, 1), n, replacement=True, generator=generator)
    return flat.reshape(*log_policy.shape[:2], n)


def _by_hessian(log_policy: Tensor, first: Tensor, second: Tensor, loss: Tensor, reward: Tensor, beta: float) -> Tensor:
    """A sampled ∂_θ f through the exact inverse of β (diag π − ππᵀ), whose range is the tables that sum to zero.

    v = ∂_θ f / (β π) up to a constant
    """
    policy = log_policy.exp()
    centred = (loss - loss.mean(-1, keepdim=True)).detach() / (loss.shape[-1] - 1)
    score = torch.zeros_like(policy).scatter_add(-1, first, centred).scatter_add(-1, second, centred)
    along = (score - policy * score.sum(-1, keepdim=True)) / (beta * policy)
    along = along - (policy * along).sum(-1, keepdim=True)
    return (policy * along * reward).sum(-1)


def sampled_gradient(
    world: LinearWorld, phi: Tensor, estimator: str, *, pairs: int, sigma: float, generator: torch.Generator
) -> Tensor:
    """[S, d] → [S, d]: an estimate of ∇ψ for the likelihood from `pairs` labelled pairs a prompt;
    inner solutions at `sigma` are exact.

    Pairs are drawn from π_σ for "two_policies" (the papers' step) and from π_0 for the others. For a Gibbs lower level
    conjugate gradients with the exact Hessian are the covariance, term by term: the inverse of β Cov(∇log π) applied to a
    sampled score is the sample covariance.

    Raises:
        ArgumentError: an unknown estimator, σ ≤ 0 where it is used.
    """
    if estimator not in ESTIMATORS:
        raise ArgumentError(f"estimator: found {estimator!r}, expected one of {', '.join(ESTIMATORS)}")
    problem = world.problem
    phi = phi.detach().requires_grad_(True)
    reward = world.reward_of(phi)
    still = (problem.log_pool + reward.detach() / problem.beta).log_softmax(-1)
    uses_sigma = estimator in ("two_policies", "shared_rollouts")
    moved = perturbed_policy(problem, reward.detach(), Likelihood(), sigma=sigma, tolerance=1e-8) if uses_sigma else still
    law = moved if estimator == "two_policies" else still
    first, second = _draw(law, pairs, generator), _draw(law, pairs, generator)
    wins = problem.preference.flatten(-2).gather(-1, first * reward.shape[-1] + second)
    sign = 2 * torch.bernoulli(wins, generator=generator) - 1
    a, b = reward.gather(-1, first), reward.gather(-1, second)
    loss = -logsigmoid(sign * (a - b))
    if estimator == "covariance":
        response = covariance(loss, a + b, beta=problem.beta)
    elif estimator == "conjugate_gradient":
        response = _by_hessian(still, first, second, loss, reward, problem.beta)
    elif estimator == "shared_rollouts":
        y = _draw(still, 2 * pairs, generator)
        response = shared(reward.gather(-1, y), (moved - still).exp().gather(-1, y), sigma=sigma)
    else:
        apart = [_draw(each, 2 * pairs, generator) for each in (still, moved)]
        response = independent(reward.gather(-1, apart[0]), reward.gather(-1, apart[1]), sigma=sigma)
    return torch.autograd.grad((loss.mean(-1) + response).mean(-1).sum(), phi)[0]


def descend(
    world: LinearWorld, estimator: str, *, steps: int, pairs: int, rate: float, sigma: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """`steps` plain steps on φ from zero; at 64 places along the second half, φ [64, S, d] and the exact ‖∇ψ‖² there, [64,
    S].
    """
    phi = torch.zeros_like(world.features[:, 0, 0])
    marks, places = {steps - 1 - k * max(1, steps // 2) // 64 for k in range(64)}, []
    for step in range(steps):
        phi = phi - rate * sampled_gradient(world, phi, estimator, pairs=pairs, sigma=sigma, generator=generator)
        if step in marks:
            places.append(phi)
    return torch.stack(places), torch.stack([world.upper_gradient(phi, Likelihood()).square().sum(-1) for phi in places])
