"""The penalties, and their names in configuration files. First those whose expected update is the gradient of the stated
objective: each ends at its optimum. Then those in use that end elsewhere; each says where, in words and by `fixed_point`."""

import torch
from torch import Tensor

from multiref import exact
from multiref.divergences import k3, kl
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
from multiref.training.online.penalty import Penalty, Samples


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
        log_ratio = samples.detached().token_log_ratio()
        return log_ratio.double().flip(-1).cumsum(-1).flip(-1)


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
        each = samples.needed("divergences").detach().double()
        return each.flip(-1).cumsum(-1).flip(-1) - each

    def loss_terms(self, samples: Samples) -> Tensor:
        log_ratio = (samples.token_logps.detach() - samples.old).double()
        # of the state, under the policy as it is now against the one that sampled
        visited = (log_ratio.cumsum(-1) - log_ratio).exp()
        return visited.to(samples.token_logps) * samples.needed("divergences")


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


# ---- ends elsewhere ----


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
        return 0.5 * samples.token_log_ratio() ** 2


class K3Loss(Penalty):
    """Σ_t Σ_k w_k k3(ℓ_{k,t}) as loss, no ratio: the usual habit of GRPO, for several references.

    Its gradient is that of the *forward* KL(Σ_k w_k π_k‖π) to the *arithmetic* mixture at each visited state,
    states held fixed.

    Reference: DERIVED (docs/theory.md 6).
    """

    optimum = "state by state β m/(Z − Q), m the arithmetic mixture: forward KL, not the reverse KL that k3 estimates"

    def loss_terms(self, samples: Samples) -> Tensor:
        refs = samples.needed("ref_token_logps").detach()
        return torch.where(samples.mask, k3(samples.token_logps, refs, samples.weights), 0.0)

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
        log_ratio = samples.token_log_ratio()
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
        log_ratio = samples.token_log_ratio() - samples.needed("disagreements")
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
        return (samples.detached().token_log_ratio() - samples.needed("disagreements")).double().sum(-1)

    def fixed_point(self, reward: Tensor, ref_levels: Levels, regularizer: Regularizer, *, beta: float) -> list[Tensor]:
        mixed = sequence_logps(renormalised(ref_levels, regularizer.weights))
        return conditionals(exact.solve(reward, mixed, ReverseKL(), beta=beta).log_policy, ref_levels[0].shape[-1])


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
        return samples.needed("divergences")


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


def penalty_named(name: str) -> Penalty:
    """A penalty by its name in a configuration. ArgumentError for a name that is none."""
    check_choice("penalty", name, PENALTIES)
    return PENALTIES[name]
