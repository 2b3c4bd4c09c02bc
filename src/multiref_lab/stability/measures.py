"""How far apart two policies are, and how good one is: exact, on completions that can be counted."""

from __future__ import annotations

import torch
from torch import Tensor

from multiref import exact
from multiref.divergences import kl
from multiref.regularizers import ReverseKL
from multiref_lab.stability.runs import Runs

__all__ = ["close_kl", "distances", "total_variation"]


def total_variation(log_p: Tensor, log_q: Tensor) -> Tensor:
    """[*B, Y], [*B, Y] → [*B]: ½ Σ_y |p − q|."""
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)


def close_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """[*B, Y], [*B, Y] → [*B]: KL(p‖q) = Σ p (e^{−ℓ} − 1 + ℓ), ℓ = log p/q: every term positive, so that it keeps its digits where p ≈ q."""
    ratio = log_p - log_q
    return (log_p.exp() * (torch.expm1(-ratio) + ratio)).sum(-1)


def distances(
    log_policy: Tensor, parameter: Tensor, reward: Tensor, ref_logps: Tensor, runs: Runs, *, beta: float
) -> dict[str, list[float]]:
    """What exchanging one example does, averaged over the exchanged ones, one number a seed.

    Args:
        log_policy: [S, M, F, Y] of every run on the fresh prompts. parameter: [S, M, P]. reward: [S, F, Y]. ref_logps: [K, S, F, Y].

    Returns:
        for each of `replace`, `leave_out` and `rerun`: parameter (Euclidean), value (mean over prompts of |f − f'|), worst_value (largest),
        tv, kl (KL(π‖π') to the run on all data). And `regret`: β KL(π‖π*) on fresh prompts, of the run on all data.
    """
    refs = ref_logps.unsqueeze(2)
    each = reward.unsqueeze(1).expand_as(log_policy)
    value = exact.value(log_policy, each, refs.expand(-1, -1, log_policy.shape[1], -1, -1), ReverseKL(), beta=beta)
    found: dict[str, list[float]] = {}
    pieces = zip(("replace", "leave_out", "rerun"), *(runs.split(x) for x in (log_policy, parameter, value)), strict=True)
    for name, policies, parameters, values in pieces:
        if not policies.shape[1]:
            continue
        moved = (values - value[:, :1]).abs()
        columns = {
            "parameter": (parameters - parameter[:, :1]).norm(dim=-1).mean(1),
            "value": moved.mean((1, 2)),
            "worst_value": moved.amax(2).mean(1),
            "tv": total_variation(log_policy[:, :1], policies).mean((1, 2)),
            "kl": close_kl(log_policy[:, :1], policies).mean((1, 2)),
        }
        found |= {f"{name}/{key}": column.tolist() for key, column in columns.items()}
    optimum = exact.solve(reward, ref_logps, ReverseKL(), beta=beta).log_policy
    found["regret"] = (beta * kl(log_policy[:, 0], optimum)).mean(-1).tolist()
    return found
