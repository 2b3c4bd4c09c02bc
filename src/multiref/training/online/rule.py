"""How a policy is updated: from which completions, by which estimator, at which strength; what a run of it optimises, in words;
and from samples and rewards the loss whose gradient is the update, the one function that loop, tables and tests share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from multiref.errors import ArgumentError
from multiref.references.rollouts import Rollout
from multiref.regularizers import Regularizer
from multiref.training.checks import check_choice
from multiref.training.online.arguments import AdaptiveBeta
from multiref.training.online.methods import RLOO, Method
from multiref.training.online.penalty import Penalty, Samples

Sampler = Callable[[Any, Any, Sequence[Any]], list[Rollout]]


@dataclass(frozen=True)
class WarmUp:
    """For a student that is far from its teachers: the first `share` of the steps at states that `sampler` gives
    (`TextStates(texts, share=1.0, …)`), under `penalty`.

    Where a run ends is decided by what follows; this is where it starts from.
    At states of a text the student's own mistakes do not compound.

    Args:
        share: of the steps, from 0 to 1.
        penalty: "per_token_forward_kl", KL(ĝ_t‖π_t) to the pool ĝ_t renormalised at each state, or "per_token_reverse_kl".
            Others look at how likely the policy was to sample what it sees, and these states are not its samples.
    """

    share: float
    sampler: Sampler
    penalty: str = "per_token_forward_kl"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ArgumentError(f"warm_up: share: expected a number from 0 to 1, found {self.share}.")
        check_choice("warm_up: penalty", self.penalty, ("per_token_forward_kl", "per_token_reverse_kl"))

    def covers(self, step: int, steps: int) -> bool:
        """Whether this step, from 0, is one of the warm-up."""
        return step < round(self.share * steps)

    def describe(self, steps: int) -> str:
        """The line that a run prints of it."""
        return f"Warm-up: {round(self.share * steps)} of {steps} steps under {self.penalty}, at states of given texts."


@dataclass(frozen=True)
class Rule:
    """The parts of an update that are a choice.

    Attributes:
        method: `RLOO(group=4)`, `Reinforce()`, `GRPO(…)`.
        penalty: a `Penalty`, its name, or None for an exact rule: "reference_samples" for forward KL where all vocabularies
            agree, else "reward", whose noise vanishes at the optimum, where all returns of a prompt are equal ("reward_to_go"
            has less early on, and keeps it).
        adaptive_beta: β that seeks a KL; None: β stays.
        sampler: (model, tokenizer, prompts) → rollouts, to sample elsewhere, such as a `ServerSampler`;
            they have to be samples of the policy at temperature 1, or to carry the log-probabilities they were sampled with
            (`Rollout.sampled_logps`), by whose ratio they are then weighted.
        warm_up: the first steps under another penalty, at states of given texts. Without a reward only.
    """

    method: Method = field(default_factory=RLOO)
    penalty: Penalty | str | None = None
    adaptive_beta: AdaptiveBeta | None = None
    sampler: Sampler | None = None
    warm_up: WarmUp | None = None


def describe(method: Method, penalty: Penalty, regularizer: Regularizer, beta: float) -> str:
    """What a run optimises, in a few lines for its start and its log."""
    lines = [
        f"{type(method).__name__}, group {method.group}; penalty {type(penalty).__name__} of β = {beta:g} times "
        f"{regularizer.formula}.",
        f"Optimum of this rule: {penalty.optimum}.",
    ]
    if not penalty.exact:
        lines.append("This is not the optimum of the regularizer as stated; the exact rule is the penalty `reward`.")
    return "\n".join(lines + [f"Note: {note}." for note in method.notes()])


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
    lengths: Tensor | None = None,
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
        lengths: tokens of every completion of the batch, over which "token_mean" is the mean where these samples are some of
            them; None: they are all.
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
    own = samples.mask.sum(-1)
    losses = normalised(per_token.sum(-1), own, method, longest=longest or samples.mask.shape[1], lengths=lengths)
    return Surrogate(losses, returns, advantages, clipped)


def normalised(total: Tensor, own: Tensor, method: Method, *, longest: int, lengths: Tensor | None = None) -> Tensor:
    """[N] sums over the tokens of completions of `own` [N] tokens → as the method averages tokens; the rest as of
    `compute_surrogate`."""
    lengths = own if lengths is None else lengths.to(own.device)
    return {
        "sum": total,
        "dr_grpo": total / longest,
        "completion_mean": total / own.clamp_min(1),
        "token_mean": total * (len(lengths) / lengths.sum().clamp_min(1)),
    }[method.normalisation]


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
