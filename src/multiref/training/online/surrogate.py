"""From samples and rewards to a loss whose gradient is the rule's update: the one function that the loop,
the tables and the tests share."""

from dataclasses import dataclass

import torch
from torch import Tensor

from multiref.regularizers import Regularizer
from multiref.training.online.methods import Method
from multiref.training.online.penalty import Penalty
from multiref.training.online.samples import Samples


@dataclass(frozen=True)
class Surrogate:
    """losses: [N], to be averaged over completions; only their gradient means something.
    returns, advantages: [N] or [N, T], r − β · (penalty in the reward), and the same less its baseline.
    clipped: [N], share of clipped terms.
    """

    losses: Tensor
    returns: Tensor
    advantages: Tensor
    clipped: Tensor


def compute_surrogate(
    samples: Samples,
    reward: Tensor,
    regularizer: Regularizer,
    *,
    method: Method,
    penalty: Penalty,
    beta: float,
    longest: int | None = None,
) -> Surrogate:
    r"""One loss per completion; the gradient of their mean is minus the rule's update.

        L_i = −Σ_t ⌊c_{i,t} A_{i,t}⌋ log π(y_{i,t} | ·) + β Σ_t penalty_{i,t},     A = advantages(r − β · terms)

    c is the ratio π/π_old (of the completion or of the token), zero where clipped; ⌊·⌋ without gradient.
    The terms in the reward are those of the policy as it is now, so that off-policy updates keep the gradient of the objective
    and not of yesterday's.

    Args:
        samples: N = P · G completions, the G of a prompt together; `token_logps` differentiable.
        reward: [N].
        longest: the constant of "dr_grpo"; T where None.
    """
    n = len(reward)
    with torch.no_grad():
        terms = penalty.reward_terms(samples, regularizer)
        returns = reward.double()
        if terms is not None:
            returns = (returns if terms.ndim == 1 else returns[:, None]) - beta * terms
        shape = (n // method.group, method.group, *returns.shape[1:])
        advantages = method.advantages(returns.reshape(shape)).reshape(returns.shape)
        each = advantages if advantages.ndim == 2 else advantages[:, None]
        coefficient, clipped = _coefficients(samples, each, method)
    per_token = -torch.where(samples.mask, (coefficient * each).to(samples.token_logps) * samples.token_logps, 0.0)
    loss_terms = penalty.loss_terms(samples)
    if loss_terms is not None:
        per_token = per_token + beta * loss_terms
    total, mask = per_token.sum(-1), samples.mask
    losses = {
        "sum": total,
        "dr_grpo": total / (longest or mask.shape[1]),
        "completion_mean": total / mask.sum(-1).clamp_min(1),
        "token_mean": total * (len(mask) / mask.sum().clamp_min(1)),
    }[method.normalisation]
    return Surrogate(losses, returns, advantages, clipped)


def _coefficients(samples: Samples, advantages: Tensor, method: Method) -> tuple[Tensor, Tensor]:
    """Ratios [N, 1] or [N, T], zero where clipped; and the share that is, [N]."""
    if method.ratio == "completion":
        ratio = (samples.logps - samples.old.double().sum(-1)).exp()[:, None]
    else:
        ratio = (samples.token_logps - samples.old).double().exp()
    if method.clip is None:
        return ratio, torch.zeros(len(ratio), dtype=ratio.dtype, device=ratio.device)
    beyond = ((advantages > 0) & (ratio > 1 + method.clip)) | ((advantages < 0) & (ratio < 1 - method.clip))
    seen = samples.mask if beyond.shape == samples.mask.shape else torch.ones_like(beyond)
    share = (beyond & seen).double().sum(-1) / seen.sum(-1).clamp_min(1)
    return torch.where(beyond, 0.0, ratio), share
