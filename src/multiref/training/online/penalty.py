"""Penalties: where a rule puts its divergence from the references, and hence which optimum it has.

The user names a regularizer and β; a `Penalty` is the estimator, a value without state that is handed the run's regularizer.
Two places
exist: in the reward (`reward_terms`, no gradient through them) or in the loss (`loss_terms`,
differentiated on samples whose distribution is held fixed). The same word, "KL to the reference",
means another objective in each, and each member says which, in its docstring, in `optimum` and through `fixed_point`,
which computes it without sampling.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from multiref import exact
from multiref._logspace import expectation, weighted_sum
from multiref.divergences import kl
from multiref.errors import ArgumentError
from multiref.regularizers import ForwardKL, Regularizer, ReverseKL
from multiref.training.checks import check_choice
from multiref.training.online.backward_induction import (
    Levels,
    backward,
    conditionals,
    disagreements,
    renormalised,
    sequence_logps,
)
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


class PenaltyInReward(Penalty):
    r"""β f'(π/P) of the whole completion (`implicit_reward`), in the reward: the exact gradient, for every regularizer.

        ∇ Σ_k w_k D(π‖π_k) = E_π[f'(π/P) ∇ log π],      f' = log for reverse KL (k1 of the weighted log-ratio)

    Note the derivative: the divergence's integrand in the reward would be another objective.
    π is the policy being updated, also when an older one sampled. For α < 1 the term is an importance weight (forward KL:
    1 − P/π); where P is not close to π, train forward KL on samples of the references instead (`ForwardKL` in the loop does).

    Reference: DERIVED (docs/theory.md 6 for reverse KL).
    """

    needs = "completions"
    exact = True
    optimum = "the optimum of the stated objective (P · e^{r/β} for reverse KL)"

    def reward_terms(self, samples: Samples, regularizer: Regularizer) -> Tensor | None:
        regularizer = regularizer if samples.weights is None else regularizer.with_weights(samples.weights)
        return regularizer.implicit_reward(samples.logps.detach(), samples.ref_logps.double(), beta=1.0)

    def fixed_point(self, reward: Tensor, ref_levels: Levels, regularizer: Regularizer, *, beta: float) -> list[Tensor]:
        log_policy = exact.solve(reward, sequence_logps(ref_levels), regularizer, beta=beta).log_policy
        return conditionals(log_policy, ref_levels[0].shape[-1])


class RewardToGo(PenaltyInReward):
    """Reverse KL in the reward, credited from each token on: Σ_{s ≥ t} (log π_s − Σ_k w_k log π_{k,s}).
    The same expectation as `PenaltyInReward`, less variance."""

    needs = "tokens"

    def reward_terms(self, samples: Samples, regularizer: Regularizer) -> Tensor:
        log_ratio = _token_log_ratio(samples.detached())
        return log_ratio.double().flip(-1).cumsum(-1).flip(-1)


class RatioK3(Penalty):
    """Σ_t ρ_t Σ_k w_k k3(ℓ_{k,t}) as loss, ρ_t = π/π_old of the token, differentiated.

    Per-sample gradient ρ_t ℓ_t ∇ log π_t: that of Σ_k w_k KL(π‖π_k) at each visited state,
    *with the visited states held fixed*. It ignores that a token leads to states where the references disagree more.
    Exact for completions of one token; elsewhere it settles where each token balances the expected reward against the
    divergence at its own state.

    Reference: DeepSeek-V3.2 eq. 7 for one reference; several: DERIVED (docs/theory.md 6).
    """

    optimum = (
        "state by state ∏ π_k^{w_k} e^{Q/β}, Q the expected reward of the token: the optimum only where "
        "completions have one token"
    )

    def loss_terms(self, samples: Samples) -> Tensor:
        ratio = (samples.token_logps - samples.old).exp()
        return ratio * K3Loss().loss_terms(samples)

    def fixed_point(self, reward: Tensor, ref_levels: Levels, regularizer: Regularizer, *, beta: float) -> list[Tensor]:
        return backward(reward, ref_levels, regularizer, beta=beta)


class K2Loss(RatioK3):
    """Σ_t ½ ℓ_t² as loss on fresh samples: the expected gradient of `RatioK3`, without a ratio."""

    def loss_terms(self, samples: Samples) -> Tensor:
        return 0.5 * _token_log_ratio(samples) ** 2


class K3Loss(Penalty):
    """Σ_t Σ_k w_k k3(ℓ_{k,t}) as loss, no ratio: the usual habit of GRPO, for several references.

    Its gradient is that of the *forward* KL(Σ_k w_k π_k‖π) to the *arithmetic* mixture at each visited state,
    states held fixed.

    Reference: DERIVED (docs/theory.md 6).
    """

    optimum = "state by state β m/(Z − Q), m the arithmetic mixture: forward KL, not the reverse KL that k3 estimates"

    def loss_terms(self, samples: Samples) -> Tensor:
        log_ratio = samples.token_logps - _needed(samples, "ref_token_logps").detach()
        w = samples.token_weights()
        each = torch.where(w > 0, torch.expm1(-log_ratio) + log_ratio, 0.0)
        return torch.where(samples.mask, (w * each).sum(0), 0.0)

    def fixed_point(self, reward: Tensor, ref_levels: Levels, regularizer: Regularizer, *, beta: float) -> list[Tensor]:
        return backward(reward, ref_levels, ForwardKL(regularizer.weights), beta=beta)


class K3PoolLoss(Penalty):
    """Σ_t k3(log π − Σ_k w_k log π_k) as loss: k3 on the (unnormalised) geometric pool.

    Its gradient is F_t times that of forward KL to the renormalised pool at each state:
    the penalty is weakest where references disagree.

    Reference: DERIVED (docs/theory.md 6).
    """

    optimum = "state by state forward KL to the renormalised tokens, of strength β F_t"

    def loss_terms(self, samples: Samples) -> Tensor:
        log_ratio = _token_log_ratio(samples)
        return torch.where(samples.mask, torch.expm1(-log_ratio) + log_ratio, 0.0)

    def fixed_point(self, reward: Tensor, ref_levels: Levels, regularizer: Regularizer, *, beta: float) -> list[Tensor]:
        weights = regularizer.weights
        scale = [(-price).exp() for price in disagreements(ref_levels, weights)]
        return backward(reward, renormalised(ref_levels, weights), ForwardKL(), beta=beta, scale=scale)


class K3RenormalisedLoss(Penalty):
    """k3 to the mixture renormalised at each token, as loss: the recipe of the authors' code (docs/theory.md 5 and 6)."""

    needs = "vocabulary"
    optimum = "state by state forward KL to the renormalised tokens, of strength β"

    def loss_terms(self, samples: Samples) -> Tensor:
        log_ratio = _token_log_ratio(samples) - _needed(samples, "disagreements")
        return torch.where(samples.mask, torch.expm1(-log_ratio) + log_ratio, 0.0)

    def fixed_point(self, reward: Tensor, ref_levels: Levels, regularizer: Regularizer, *, beta: float) -> list[Tensor]:
        return backward(reward, renormalised(ref_levels, regularizer.weights), ForwardKL(), beta=beta)


class RenormalisedInReward(Penalty):
    """k1 to the mixture renormalised at each token, in the reward: an exact gradient, of KL(π‖∏_t ĝ_t),
    which forgets Σ_t −log F_t."""

    needs = "vocabulary"
    optimum = (
        "(renormalised tokens) · e^{r/β} = the optimum · e^{Σ_t −log F_t}: a bonus for long completions and for disagreement"
    )

    def reward_terms(self, samples: Samples, regularizer: Regularizer) -> Tensor:
        return (_token_log_ratio(samples.detached()) - _needed(samples, "disagreements")).double().sum(-1)

    def fixed_point(self, reward: Tensor, ref_levels: Levels, regularizer: Regularizer, *, beta: float) -> list[Tensor]:
        mixed = sequence_logps(renormalised(ref_levels, regularizer.weights))
        return conditionals(exact.solve(reward, mixed, ReverseKL(), beta=beta).log_policy, ref_levels[0].shape[-1])


class FullVocabulary(PenaltyInReward):
    r"""Σ_k w_k KL(π_t‖π_{k,t}) summed over the vocabulary at each sampled state, differentiated,
    and what follows the token in the reward.

        ∇ Σ_k w_k KL(π‖π_k) = E_π Σ_t [∇ D_t(s_t) + (Σ_{s > t} D_s) ∇ log π(y_t|s_t)],
        D_t = Σ_v π(v|s_t) log(π(v|s_t)/∏_k π_k(v|s_t)^{w_k})

    The same expectation as `RewardToGo` with each token's own noise summed out:
    the exact gradient, and the estimator for distillation. Needs all logits of all references.

    Reference: DERIVED (Rao–Blackwell over the token; chain rule of docs/theory.md 6).
    """

    needs = "vocabulary"

    def reward_terms(self, samples: Samples, regularizer: Regularizer) -> Tensor | None:
        each = _needed(samples, "divergences").detach().double()
        return each.flip(-1).cumsum(-1).flip(-1) - each

    def loss_terms(self, samples: Samples) -> Tensor:
        log_ratio = (samples.token_logps.detach() - samples.old).double()
        visited = (
            log_ratio.cumsum(-1) - log_ratio
        ).exp()  # of the state, under the policy as it is now against the one that sampled
        return visited.to(samples.token_logps) * _needed(samples, "divergences")


class PerTokenReverseKL(FullVocabulary):
    """The first half of `FullVocabulary`: what on-policy distillation usually is.
    Least variance, but it does not charge a token for where it leads."""

    exact = False
    optimum = (
        "state by state ∏ π_k^{w_k} e^{Q/β}; without a reward the tokens renormalised one by one, not the "
        "normalised pool of completions"
    )

    def reward_terms(self, samples: Samples, regularizer: Regularizer) -> Tensor | None:
        return None

    def fixed_point(self, reward: Tensor, ref_levels: Levels, regularizer: Regularizer, *, beta: float) -> list[Tensor]:
        return backward(reward, ref_levels, regularizer, beta=beta)


class PerTokenForwardKL(K3RenormalisedLoss):
    """KL(ĝ_t‖π_t) at each state as loss, ĝ_t the pool renormalised at the state:
    `K3RenormalisedLoss` with the token summed out.

    Without a reward it has the fixed point of `PerTokenReverseKL` (both are zero at ĝ_t), and its gradient,
    that of a cross-entropy, does not fade where the student gives no mass to what the teachers say:
    the warm-up for a student that is far from them.
    """

    optimum = (
        "state by state forward KL to the renormalised tokens, of strength β; without a reward the "
        "renormalised tokens themselves"
    )

    @staticmethod
    def at_state(logps: Tensor, pool: Tensor) -> Tensor:
        """[*S, V] log π(·|s), [*S, V] Σ_k w_k log π_k(·|s) → [*S]: KL(ĝ_t‖π_t)."""
        return kl(pool.log_softmax(-1), logps)

    def loss_terms(self, samples: Samples) -> Tensor:
        return _needed(samples, "divergences")


class FromReferences(Penalty):
    """Forward KL on samples of the references: −β Σ_k w_k E_{π_k}[log π(y|x)], the exact gradient without an importance weight.

    The terms are of other completions than the policy's; the loop draws them (see `OnlineTrainer`),
    and adds them to a loss that has the reward alone.
    """

    needs = "references"
    exact = True
    optimum = "the optimum of the stated objective, β P/(Z − r), P the arithmetic mixture"

    def check(self, regularizer: Regularizer) -> None:
        if not isinstance(regularizer, ForwardKL):
            raise ArgumentError(f"FromReferences: expected ForwardKL, found {regularizer!r}. Others use PenaltyInReward.")

    def fixed_point(self, reward: Tensor, ref_levels: Levels, regularizer: Regularizer, *, beta: float) -> list[Tensor]:
        return PenaltyInReward().fixed_point(reward, ref_levels, regularizer, beta=beta)


class NoPenalty(Penalty):
    """β = 0: the reward alone."""

    needs = "completions"
    optimum = "the completions of largest reward"

    def fixed_point(self, reward: Tensor, ref_levels: Levels, regularizer: Regularizer, *, beta: float) -> list[Tensor]:
        best = (reward == reward.amax(-1, keepdim=True)).to(reward.dtype)
        return conditionals((best / best.sum(-1, keepdim=True)).log(), ref_levels[0].shape[-1])


# the names of configuration files
PENALTIES: dict[str, Penalty] = {
    "reward": PenaltyInReward(),
    "reward_to_go": RewardToGo(),
    "ratio_k3": RatioK3(),
    "k2": K2Loss(),
    "k3": K3Loss(),
    "k3_pool": K3PoolLoss(),
    "k3_renormalised": K3RenormalisedLoss(),
    "reward_renormalised": RenormalisedInReward(),
    "full_vocabulary": FullVocabulary(),
    "per_token_reverse_kl": PerTokenReverseKL(),
    "per_token_forward_kl": PerTokenForwardKL(),
    "reference_samples": FromReferences(),
}


def _token_log_ratio(samples: Samples) -> Tensor:
    """[N, T]: log π − Σ_k w_k log π_k of each token; zero where padded."""
    refs = _needed(samples, "ref_token_logps").detach()
    return torch.where(samples.mask, samples.token_logps - weighted_sum(refs, samples.token_weights()), 0.0)


_MISSING = {
    "ref_token_logps": "This penalty is computed token by token and needs references with the policy's vocabulary; found "
    "scores of whole completions only. Use the penalty `reward` (PenaltyInReward), which is exact and works across tokenizers.",
    "disagreements": "This penalty renormalises at each token and needs −log F_t of each state; found none in the samples.",
    "divergences": "This penalty is summed over the vocabulary at each token; found no such sums in the samples.",
}


def _needed(samples: Samples, name: str) -> Tensor:
    """What the samples have under this name, zero where padded."""
    found: Tensor | None = getattr(samples, name)
    if found is None:
        raise ArgumentError(_MISSING[name])
    return torch.where(samples.mask, found, 0.0)


def penalty_named(name: str) -> Penalty:
    """A penalty by its name in a configuration. ArgumentError for a name that is none."""
    check_choice("penalty", name, PENALTIES)
    return PENALTIES[name]
