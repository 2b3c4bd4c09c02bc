"""The regularised objective at any policy."""

from torch import Tensor

from multiref._logspace import check_beta, check_logps, expectation
from multiref.exact._problem import check_policy_shape, check_reward, check_shapes
from multiref.regularizers import Regularizer


def value(log_policy: Tensor, reward: Tensor, ref_logps: Tensor, regularizer: Regularizer, *, beta: float = 0.1) -> Tensor:
    r"""[*B, Y], [*B, Y], [K, *B, Y] → [*B]: the objective at a policy, per prompt, in units of the reward.

        J(π) = E_π[r] − β Σ_k w_k D(π‖π_k)

    For reverse KL, J* − J(π) = β KL(π‖π*), whatever π is (docs/theory.md 1 a).

    Raises:
        ArgumentError: NaN or +inf rewards, log-probabilities above zero, shapes that do not match, β ≤ 0.
    """
    check_beta(beta)
    check_logps(log_policy, "log_policy")
    shape = check_shapes(check_reward(reward), check_logps(ref_logps, "ref_logps"))
    check_policy_shape(log_policy, shape)
    return expectation(log_policy, reward) - beta * regularizer.penalty(log_policy, ref_logps)
