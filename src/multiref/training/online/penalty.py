"""Penalties: where a rule puts its divergence from the references, and hence which optimum it has.

The user names a regularizer and β; a `Penalty` is the estimator, a value without state that is handed the run's regularizer.
Two places
exist: in the reward (`reward_terms`, no gradient through them) or in the loss (`loss_terms`,
differentiated on samples whose distribution is held fixed). The same word, "KL to the reference",
means another objective in each, and each member says which, in its docstring, in `optimum` and through `fixed_point`,
which computes it without sampling. `exact_penalties` end at the optimum of the stated objective, `other_penalties` elsewhere.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from multiref._logspace import expectation
from multiref.errors import ArgumentError
from multiref.regularizers import Regularizer, ReverseKL
from multiref.training.online.backward_induction import Levels
from multiref.training.online.samples import Samples


def reverse_to_pool(logps: Tensor, pool: Tensor) -> Tensor:
    """[*S, V] log π(·|s), [*S, V] Σ_k w_k log π_k(·|s) → [*S]: Σ_k w_k KL(π_t‖π_{k,t}), at least −log F_t."""
    return expectation(logps, logps - pool)


@dataclass(frozen=True)
class Penalty(ABC):
    """Abstract. `needs` says which scores: of whole "completions", of "tokens" (one vocabulary),
    or the whole "vocabulary" at each token.

    exact: whether the rule's expected update is the gradient of E_π[r] − β Σ_k w_k D(π‖π_k), for every policy.
    at_state: what is summed over the vocabulary at each state, for those that need it.
    """

    needs: ClassVar[str] = "tokens"
    exact: ClassVar[bool] = False
    optimum: ClassVar[str] = ""

    @staticmethod
    def at_state(logps: Tensor, pool: Tensor) -> Tensor:
        """[*S, V] log π(·|s), [*S, V] Σ_k w_k log π_k(·|s) → [*S]."""
        return reverse_to_pool(logps, pool)

    def check(self, regularizer: Regularizer) -> None:
        """ArgumentError for a regularizer that this penalty is no estimator of."""
        if self.needs != "completions" and not isinstance(regularizer, ReverseKL):
            raise ArgumentError(
                f"{type(self).__name__}: expected ReverseKL, found {regularizer!r}. Penalties at tokens exist for reverse KL "
                "only; other regularizers use PenaltyInReward, the exact rule."
            )

    def check_strength(self, beta: float) -> None:
        """ArgumentError for a strength at which this penalty is not what it says."""
        return None

    def figures(self, samples: Samples, regularizer: Regularizer) -> dict[str, Tensor]:
        """[N] each: what the log has of this penalty."""
        return {}

    def reward_terms(self, samples: Samples, regularizer: Regularizer) -> Tensor | None:
        """[N] or, as penalty-to-go, [N, T]: what is taken off the reward, times β. None: nothing."""
        return None

    def loss_terms(self, samples: Samples) -> Tensor | None:
        """[N, T], differentiable: what is added to the loss, times β; zero where padded. None: nothing."""
        return None

    @abstractmethod
    def fixed_point(self, reward: Tensor, ref_levels: Levels, regularizer: Regularizer, *, beta: float) -> list[Tensor]:
        """[*B, V^L] rewards, levels [K, *B, V^t, V] → levels [*B, V^t, V]: the policy at which the expected update is zero.

        Levels are as in `backward_induction`.
        """
