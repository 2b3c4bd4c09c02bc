"""Sampled hyper-gradients on linear worlds, for all seeds at once: what E1, E2, E3 and CG do with a budget of rollouts and labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from multiref.bilevel import Likelihood, covariance, independent, perturbed_policy, shared
from multiref.errors import ArgumentError
from multiref.lab.bilevel.world import LinearReward

__all__ = ["ESTIMATORS", "draw", "sampled_gradient"]

ESTIMATORS = ("E1", "E2", "E3", "CG")


def draw(log_policy: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """[S, X, Y] → [S, X, n]."""
    flat = torch.multinomial(log_policy.exp().flatten(0, 1), n, replacement=True, generator=generator)
    return flat.unflatten(0, log_policy.shape[:2])


def _labelled(world: LinearReward, reward: Tensor, law: Tensor, pairs: int, generator: torch.Generator):
    """Pairs from a law, labelled: losses and both rewards, [S, X, m]."""
    first, second = draw(law, pairs, generator), draw(law, pairs, generator)
    wins = world.problem.preference.flatten(-2).gather(-1, first * reward.shape[-1] + second)
    sign = 2 * torch.bernoulli(wins, generator=generator) - 1
    a, b = reward.gather(-1, first), reward.gather(-1, second)
    return -logsigmoid(sign * (a - b)), a, b, first, second


def _by_fisher(log_policy: Tensor, first: Tensor, second: Tensor, loss: Tensor, reward: Tensor, beta: float) -> Tensor:
    """CG: a sampled ∂_θ f through the exact inverse of β (diag π − ππᵀ), whose range is the tables that sum to zero: v = ∂_θ f / (β π) up to a constant."""
    policy = log_policy.exp()
    centred = (loss - loss.mean(-1, keepdim=True)).detach() / (loss.shape[-1] - 1)
    score = torch.zeros_like(policy).scatter_add(-1, first, centred).scatter_add(-1, second, centred)
    score = score - policy * score.sum(-1, keepdim=True)
    along = score / (beta * policy)
    along = along - (policy * along).sum(-1, keepdim=True)
    return (policy * along * reward).sum(-1)


def sampled_gradient(
    world: LinearReward, phi: Tensor, estimator: str, *, pairs: int, sigma: float, generator: torch.Generator
) -> Tensor:
    """[S, d] → [S, d]: an estimate of ∇ψ for U0 from `pairs` labelled pairs a prompt; E1 and E2 have exact inner solutions at `sigma`.

    Every estimator draws 2 · pairs rollouts a prompt for the direct term; E1 draws as many again from each policy for its response, E2 once.
    """
    if estimator not in ESTIMATORS:
        raise ArgumentError(f"estimator: found {estimator!r}, expected one of {', '.join(ESTIMATORS)}")
    phi = phi.detach().requires_grad_(True)
    reward, upper, problem = world.reward_of(phi), Likelihood(), world.problem
    still = problem.lower(reward.detach())
    moved = still
    if estimator in ("E1", "E2"):
        moved = perturbed_policy(problem, reward.detach(), upper, sigma=sigma, tolerance=1e-6)
    law = moved if estimator == "E1" else still
    loss, a, b, first, second = _labelled(world, reward, law, pairs, generator)
    if estimator == "E3":
        response = covariance(loss, a + b, beta=problem.beta)
    elif estimator == "CG":
        response = _by_fisher(still, first, second, loss, reward, problem.beta)
    elif estimator == "E2":
        y = draw(still, 2 * pairs, generator)
        response = shared(reward.gather(-1, y), (moved - still).exp().gather(-1, y), sigma=sigma)
    else:
        apart = [draw(each, 2 * pairs, generator) for each in (still, moved)]
        response = independent(reward.gather(-1, apart[0]), reward.gather(-1, apart[1]), sigma=sigma)
    return torch.autograd.grad((loss.mean(-1) + response).mean(-1).sum(), phi)[0]
