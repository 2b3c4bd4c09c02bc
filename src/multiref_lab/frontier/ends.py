"""Where each rule would lead if training were perfect: its own optimum on enumerated answers, computed without training."""

import torch
from torch import Tensor

from multiref import exact
from multiref.regularizers import ReverseKL, check_weights
from multiref.training.online import conditionals, penalty_named, sequence_logps
from multiref_lab.frontier.rules import penalty, regularizer


def optimum(
    training: str, rule: str, weight: float, reward: Tensor, ref_logps: Tensor, *, beta: float, vocabulary: int
) -> Tensor:
    """[N, Y] rewards, [K, N, Y] → [N, Y]: log-probabilities of the policy at which the rule comes to rest.

    Offline the preferences are those of the exact reward and the pairs are drawn, two different answers,
    from the references' mean; only Multi-DPO's optimum depends on that law.
    """
    weights = (weight, 1 - weight)
    if training == "online":
        levels = [torch.stack(parts) for parts in zip(*(conditionals(ref, vocabulary) for ref in ref_logps), strict=True)]
        settled = penalty_named(penalty(rule)).fixed_point(reward, levels, regularizer(rule, weights), beta=beta)
        return sequence_logps(settled)
    if rule == "multi-dpo":
        return multi_dpo_optimum(reward, ref_logps, weights, beta=beta)
    return exact.solve(reward, ref_logps, regularizer(rule, weights), beta=beta).log_policy


def multi_dpo_optimum(reward: Tensor, ref_logps: Tensor, weights: tuple[float, ...], *, beta: float) -> Tensor:
    r"""[N, Y], [K, N, Y] → [N, Y]: log π that minimises Multi-DPO's population loss, prompt by prompt.

        min_θ  Σ_{a≠b} m_ab Σ_k w_k CE(σ(r_a − r_b), σ(β (θ_a − θ_b − (s_ka − s_kb)))),     π = softmax(θ),  s_k = log π_k

    m_ab = μ_a μ_b (1/(1−μ_a) + 1/(1−μ_b))/2, μ the references' mean: the law of `demo.draw_pairs`. Convex in θ, with a graph
    Laplacian as Hessian: Newton's method from the geometric pool's optimum, no entry moved by more than one nat at once.

    Reference: DERIVED. K = 1 is DPO: θ = s + r/β.
    """
    kept = check_weights(weights, len(ref_logps))
    start = exact.solve(reward, ref_logps, ReverseKL(weights), beta=beta).log_policy
    prompts = zip(reward, ref_logps.unbind(1), start, strict=True)
    return torch.stack([_one_prompt(r, s, kept, first, beta) for r, s, first in prompts])


def _one_prompt(reward: Tensor, ref_logps: Tensor, weights: Tensor, start: Tensor, beta: float) -> Tensor:
    mu = ref_logps.exp().mean(0)
    mass = mu[:, None] * mu[None, :] * (1 / (1 - mu[:, None]) + 1 / (1 - mu[None, :])) / 2
    mass.fill_diagonal_(0.0)
    preferred = torch.sigmoid(reward[:, None] - reward[None, :])
    theta = start
    for _ in range(50):
        gradient, curvature = torch.zeros_like(mu), torch.zeros_like(mass)
        for weight, logps in zip(weights.tolist(), ref_logps, strict=True):
            score = theta - logps
            said = torch.sigmoid(beta * (score[:, None] - score[None, :]))
            gradient += weight * (mass * (said - preferred)).sum(1)
            curvature += weight * mass * said * (1 - said)
        step = _newton(gradient / beta, curvature).clamp(-1, 1)
        theta = theta - step
        if float(step.abs().max()) < 1e-10:
            break
    return theta.log_softmax(0)


def _newton(gradient: Tensor, curvature: Tensor) -> Tensor:
    """L⁻¹ g for the Laplacian L = diag(C 1) − C, up to a constant; scaled by its diagonal, as masses span many orders."""
    root = curvature.sum(1).sqrt()
    scaled = torch.eye(len(root), dtype=root.dtype) - curvature / (root[:, None] * root[None, :])
    null = root / root.norm()
    step: Tensor = torch.linalg.solve(scaled + null[:, None] * null[None, :], gradient / root)
    return step / root
