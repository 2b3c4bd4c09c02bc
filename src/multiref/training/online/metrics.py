"""What a batch of completions tells: the names of TRL's users, and for K references one `kl` each, their disagreement,
and how near the optimum is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from multiref.regularizers import Regularizer, check_weights
from multiref.training.online.batch import Batch

__all__ = ["rollout_metrics"]


def rollout_metrics(
    batch: Batch, token_logps: Tensor, regularizer: Regularizer, *, beta: float, names: Sequence[str]
) -> dict[str, float]:
    r"""Of N = P · G completions of the policy, whole-completion quantities, in nats:

        reward, reward_std    of the task's reward, without the penalty
        kl/<name>             log π − log π_k: unbiased for KL(π‖π_k)
        kl                    Σ_k w_k of these
        objective             r − β Σ_k w_k (log π − log π_k): for reverse KL unbiased for J(π)
        disagreement          −log of the group's mean of e^{−ℓ}, ℓ = log π − Σ_k w_k log π_k:
                              consistent for −log F, too large on average for small groups
        ess                   effective sample size, as a share of the group, of the completions as samples of the optimum
                              (weights P e^{r/β}/π): 1 at the optimum
        regret                β (log mean − mean log) of those weights, a consistent estimate of J* − J(π),
                              too small on average for small groups
        sampling_ratio        mean of π/μ, μ whoever sampled, where that is not the policy as it is: 1 but for noise
        logps/per_token       log π, of a token

    `ess` and `regret` for pools of reverse KL (α = 1) only.

    Args:
        token_logps: [N, T] of the policy before the update; names: of the K references.
    """
    reward, logps, lengths = batch.reward, token_logps.sum(-1), batch.lengths.double()
    ended = [end for rollout in batch.rollouts for end in rollout.ended]
    values = {
        "reward": float(reward.mean()),
        "reward_std": float(reward.std(unbiased=False)),
        **{f"rewards/{name}/mean": float(each.mean()) for name, each in batch.each.items()},
        "completions/mean_length": float(lengths.mean()),
        "completions/clipped_ratio": 1 - sum(ended) / len(ended),
        "logps/per_token": float(token_logps.sum() / lengths.sum()),
    }
    if batch.old is not None:
        values["sampling_ratio"] = float((token_logps - batch.old).sum(-1).exp().mean())
    if "completions" not in batch.refs:
        return values
    ref_logps = batch.refs["completions"].double()
    w = check_weights(batch.weights, len(ref_logps))
    w = w if w.ndim == 2 else w[:, None]
    each = logps - ref_logps
    log_ratio = (w * torch.where(w > 0, each, 0.0)).sum(0)
    values["kl"] = float(log_ratio.mean())
    values |= {f"kl/{name}": float(each[k].mean()) for k, name in enumerate(names)}
    values["objective"] = float((reward - beta * log_ratio).mean())
    group = batch.group
    values["disagreement"] = float(-(torch.logsumexp(-log_ratio.reshape(-1, group), 1) - math.log(group)).mean())
    if regularizer.alpha == 1 and beta > 0:
        pool = regularizer.with_weights(batch.weights).pool(ref_logps)
        log_weight = (reward / beta + pool - logps).reshape(-1, group)
        total = torch.logsumexp(log_weight, 1)
        values["ess"] = float((2 * total - torch.logsumexp(2 * log_weight, 1)).exp().mean() / group)
        values["regret"] = float(beta * (total - math.log(group) - log_weight.mean(1)).mean())
    return values
