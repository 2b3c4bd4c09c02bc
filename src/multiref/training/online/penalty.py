"""Penalties: where a rule puts its divergence from the references, and hence which optimum it has.

The user names a regularizer and β; a `Penalty` is the estimator, a value without state that is handed the run's regularizer
and `Samples`. Two places exist: in the reward (`reward_terms`, no gradient through them) or in the loss (`loss_terms`,
differentiated on samples whose distribution is held fixed). The same word, "KL to the reference", means another objective in
each, and each member says which, in its docstring, in `optimum` and through `fixed_point`, which computes it without sampling.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from multiref._logspace import check_weights, expectation, weighted_sum
from multiref.errors import ArgumentError
from multiref.regularizers import Regularizer, ReverseKL
from multiref.training.online.backward_induction import Levels

_MISSING = {
    "ref_token_logps": "This penalty is computed token by token and needs references with the policy's vocabulary; found "
    "scores of whole completions only. Use the penalty `reward` (PenaltyInReward), which is exact and works across tokenizers.",
    "disagreements": "This penalty renormalises at each token and needs −log F_t of each state; found none in the samples.",
    "divergences": "This penalty is summed over the vocabulary at each token; found no such sums in the samples.",
}


@dataclass(frozen=True)
class Samples:
    """N completions, padded to T tokens.

    Attributes:
        token_logps: [N, T], log π(y_t | x, y_<t) under the policy as it is now; zero where padded.
        mask: [N, T] bool, True on the tokens of the completion.
        ref_logps: [K, N], log π_k(y | x) of whole completions. Their tokenizers need not be the policy's.
        weights: [K] or [K, N] on the simplex; None is uniform. [K, N]: each completion its own (its prompt's), as in routing.
        old_token_logps: [N, T], log-probabilities under the policy that sampled; None: the same policy.
        ref_token_logps: [K, N, T], where all vocabularies are the same mapping; else None.
        disagreements: [N, T], −log F_t ≥ 0 at the state before each token, F_t = Σ_v Π_k π_k(v | x, y_<t)^{w_k}; else None.
        divergences: [N, T], Σ_k w_k KL(π_t‖π_{k,t}) at the same states, summed over the vocabulary, differentiable; else None.
    """

    token_logps: Tensor
    mask: Tensor
    ref_logps: Tensor
    weights: Any = None
    old_token_logps: Tensor | None = None
    ref_token_logps: Tensor | None = None
    disagreements: Tensor | None = None
    divergences: Tensor | None = None

    def __post_init__(self) -> None:
        n = self.token_logps.shape[0]
        if self.mask.shape != self.token_logps.shape or self.ref_logps.ndim != 2 or self.ref_logps.shape[1] != n:
            raise ArgumentError(
                "samples: expected token_logps [N, T], mask [N, T] and ref_logps [K, N], found "
                f"{tuple(self.token_logps.shape)}, {tuple(self.mask.shape)} and {tuple(self.ref_logps.shape)}."
            )

    @property
    def logps(self) -> Tensor:
        """[N], log π(y | x) of whole completions, float64."""
        return self.token_logps.double().sum(-1)

    @property
    def old(self) -> Tensor:
        """[N, T], token log-probabilities of the policy that sampled, without gradient."""
        return (self.token_logps if self.old_token_logps is None else self.old_token_logps).detach()

    def token_weights(self) -> Tensor:
        """[K, N or 1, 1] weights beside `ref_token_logps`."""
        w = check_weights(self.weights, self.ref_logps.shape[0]).to(self.token_logps)
        return w.reshape(*w.shape, *([1] * (3 - w.ndim)))

    def detached(self) -> "Samples":
        """The same without gradient."""
        return replace(self, token_logps=self.token_logps.detach())

    def token_log_ratio(self) -> Tensor:
        """[N, T]: log π − Σ_k w_k log π_k of each token; zero where padded."""
        refs = self.needed("ref_token_logps").detach()
        return torch.where(self.mask, self.token_logps - weighted_sum(refs, self.token_weights()), 0.0)

    def needed(self, name: str) -> Tensor:
        """What there is under this name, zero where padded. ArgumentError where there is none."""
        found: Tensor | None = getattr(self, name)
        if found is None:
            raise ArgumentError(_MISSING[name])
        return torch.where(self.mask, found, 0.0)


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
        """[*S, V] log π(·|s), [*S, V] Σ_k w_k log π_k(·|s) → [*S]: Σ_k w_k KL(π_t‖π_{k,t}), at least −log F_t."""
        return expectation(logps, logps - pool)

    def check(self, regularizer: Regularizer) -> None:
        """ArgumentError for a regularizer that this penalty is no estimator of."""
        if self.needs != "completions" and not isinstance(regularizer, ReverseKL):
            raise ArgumentError(
                f"{type(self).__name__}: expected ReverseKL, found {regularizer!r}. Penalties at tokens exist for reverse KL "
                "only; other regularizers use PenaltyInReward, the exact rule."
            )

    def check_strength(self, beta: float, *, moves: bool = False) -> None:
        """ArgumentError for a strength, which may move, at which this penalty is not what it says."""
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
