"""Penalties whose expected update is the gradient of the stated objective: each ends at its optimum."""

from torch import Tensor

from multiref import exact
from multiref.errors import ArgumentError
from multiref.regularizers import ForwardKL, Regularizer
from multiref.training.online.backward_induction import Levels, conditionals, sequence_logps
from multiref.training.online.penalty import Penalty
from multiref.training.online.samples import Samples


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
        visited = (
            log_ratio.cumsum(-1) - log_ratio
        ).exp()  # of the state, under the policy as it is now against the one that sampled
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
