"""What a method is given: a policy, references, a reward model and an oracle, all of them functions of prompts and completions.

Prompts are numbers [B]; completions are token ids [*S, B, n, L], n of each prompt, padded with −1.
*S is empty for one model, or an axis of seeds that train side by side.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from multiref.losses import bradley_terry
from multiref.regularizers import Regularizer, check_beta
from multiref.training.checks import check_whole


class Policy(Protocol):
    """A policy that can be sampled, scored, trained and copied; one that has `matrices()`, hidden ones [*S, m, n],
    can be trained with Muon."""

    def parameters(self) -> Iterable[Tensor]:
        """What an optimiser moves."""

    def sample(self, prompts: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """[B] → [*S, B, n, L] token ids."""

    def logps(self, prompts: Tensor, completions: Tensor) -> Tensor:
        """[B], [*S, B, n, L] → [*S, B, n], differentiable."""

    def copy(self) -> "Policy":
        """An independent policy with the same parameters (for adapters: the same base)."""


class RewardModel(Protocol):
    """A reward that can be trained."""

    def parameters(self) -> Iterable[Tensor]:
        """What an optimiser moves."""

    def __call__(self, prompts: Tensor, completions: Tensor) -> Tensor:
        """[B], [*S, B, n, L] → [*S, B, n], differentiable."""


class Oracle(Protocol):
    """Who is asked: 1 where the first completion is preferred, 0 where the second is."""

    def __call__(self, prompts: Tensor, first: Tensor, second: Tensor, generator: torch.Generator) -> Tensor:
        """[B], [*S, B, L], [*S, B, L] → [*S, B] of zeros and ones."""


@dataclass
class Task:
    """A problem to be solved with labels.

    Attributes:
        prompts: how many there are; numbers 0 … prompts − 1.
        policy: where training starts; its rollouts are also the comparator of win_rate and the offline data.
        ref_logps: (prompts [B], completions [*S, B, n, L]) → [K, *S, B, n].
        reward_model: where reward learning starts; None for methods without one.
        measure: what to record of a policy (exact sub-optimality, where it is known) as numbers [*S] by name.
        settings: what else a run shares with the one whose checkpoint it goes on from.
    """

    prompts: int
    policy: Policy
    ref_logps: Callable[[Tensor, Tensor], Tensor]
    regularizer: Regularizer
    beta: float
    oracle: Oracle
    reward_model: RewardModel | None = None
    measure: Callable[[Any], dict[str, Tensor]] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_beta(self.beta)
        check_whole(self, 1, "prompts")

    @property
    def loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Of (chosen, rejected) rewards: Bradley–Terry, or what the oracle's labels need (`PrivateOracle`)."""
        loss: Callable[[Tensor, Tensor], Tensor] = getattr(self.oracle, "loss", bradley_terry)
        return loss

    def implicit_reward(self, policy: Policy, prompts: Tensor, completions: Tensor) -> Tensor:
        """[*S, B, n]: β f'(π/P), differentiable: the penalty's gradient as a reward, and DPO's reward."""
        with torch.no_grad():
            references = self.ref_logps(prompts, completions)
        return self.regularizer.implicit_reward(policy.logps(prompts, completions), references, beta=self.beta)
