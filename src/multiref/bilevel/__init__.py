"""Reward learning from preferences over completions of the policy that the reward induces:
a bilevel problem, and its hyper-gradients.

The problem, four upper objectives, the closed form, the penalty form, three sampled estimators, and conjugate gradients.
Arrays only; everything is per prompt, in the reward table: chain it through any reward model with `reward.backward(gradient)`.
"""

from multiref.bilevel.estimators import (
    ImplicitGradient,
    conjugate_gradients,
    covariance,
    implicit_hypergradient,
    independent,
    shared,
    shared_weights,
)
from multiref.bilevel.hypergradient import (
    check_sigma,
    hypergradient,
    penalised_gradient,
    penalised_value,
    perturbed_policy,
    policy_response,
)
from multiref.bilevel.problem import (
    Debiased,
    Likelihood,
    Problem,
    StopGradient,
    Upper,
    WinRate,
    preference_table,
    upper_named,
)

__all__ = [
    "Debiased",
    "ImplicitGradient",
    "Likelihood",
    "Problem",
    "StopGradient",
    "Upper",
    "WinRate",
    "check_sigma",
    "conjugate_gradients",
    "covariance",
    "hypergradient",
    "implicit_hypergradient",
    "independent",
    "penalised_gradient",
    "penalised_value",
    "perturbed_policy",
    "policy_response",
    "preference_table",
    "shared",
    "shared_weights",
    "upper_named",
]
