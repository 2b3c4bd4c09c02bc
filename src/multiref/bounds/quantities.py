"""What each named quantity of a bound must satisfy, decided once."""

import math
from collections.abc import Callable, Mapping
from numbers import Real

import torch
from torch import Tensor

from multiref.errors import ArgumentError

_KINDS: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "positive": (lambda v: v > 0, "a positive number"),
    "not negative": (lambda v: v >= 0, "a number that is not negative"),
    "at least one": (lambda v: v >= 1, "a number of at least 1"),
    "small": (lambda v: 0 < v <= 1, "a positive number of at most 1"),
    "below a quarter": (lambda v: 0 < v < 0.25, "a positive number below 1/4"),
    "below 1/256": (lambda v: 0 < v < 1 / 256, "a positive number below 1/256"),
    "probability": (lambda v: 0 < v < 1, "a probability strictly between 0 and 1"),
}
_RULES: Mapping[str, tuple[str, str]] = {
    "samples": ("positive", "n: preference pairs, or prompts for the stability statements"),
    "iterations": ("positive", "T: steps of gradient ascent"),
    "beta": ("positive", "β: strength of the regularisation, the papers' 1/γ"),
    "delta": ("probability", "δ: the chance that the bound fails"),
    "coverage": (
        "at least one",
        "C: the largest ratio of policy to sampling law at any prompt (forward KL F2: of policy to arithmetic pool)",
    ),
    "sampling_coverage": ("at least one", "the largest ratio of the arithmetic pool to the law that pairs are drawn from"),
    "reward_max": ("positive", "R: rewards lie in [0, R]"),
    "class_size": ("at least one", "|R|: number of candidate rewards"),
    "disagreement": ("not negative", "−log F: the price of references that differ, in nats, at the prompt where it is largest"),
    "log_comparator": ("not negative", "log of the largest ratio of the comparator policy to the geometric pool"),
    "comparator_kl": ("not negative", "KL(arithmetic pool ‖ comparator policy)"),
    "radius": ("positive", "R of the stability paper: parameters within this norm, three times the true one's"),
    "feature_norm": ("positive", "C of the stability paper: largest norm of a feature vector"),
    "dimension": ("at least one", "d: number of features"),
    "curvature": ("positive", "σ: least eigenvalue of the expected feature covariance"),
    "residual": ("not negative", "ε_n: largest part of a feature outside the span of the training prompts' features"),
    "sigma_max": ("positive", "largest eigenvalue of V_S"),
    "sigma_min": ("positive", "least positive eigenvalue of V_S"),
    "sigma_min_other": ("positive", "least positive eigenvalue of V_S', the neighbouring sample's"),
    "gradient_norm": ("not negative", "‖∇J_S‖ at the returned parameter"),
    "distance": ("not negative", "‖θ_S − θ*‖"),
    "smoothness": ("positive", "L_f: Lipschitz constant of ∇f"),
    "mixing": ("positive", "λ of the stochastic gradient statement"),
    "condition": ("positive", "√Γ_SS + √Γ_SS' of the gradient-ascent statements"),
    "epsilon": ("positive", "ε of randomised response: a label is kept with probability e^ε/(1 + e^ε)"),
    "small_epsilon": (
        "small",
        "ε of randomised response, at most 1: beyond it the printed form is wrong by more than a constant",
    ),
    "target": ("positive", "the gap in the regularised objective that is asked for"),
    "rollouts": ("at least one", "K: fresh rollouts of each prompt"),
    "tau": ("positive", "τ: where log-ratios of completions are clipped, nats"),
    "chi_squared": ("not negative", "χ² of the policy to the law that the reward model was trained on"),
    "squared_error": ("not negative", "L₂: mean squared error of the reward model under its training law"),
    "clip_bias": ("not negative", "E|ℓ − ℓ^τ| under the policy: what clipping takes off, nats"),
    "deviation": ("positive", "s: the error of the reward is s-sub-Gaussian under the learnt policy"),
    "small_beta": ("below a quarter", "β where η = 1/β > 4"),
    "small_target": ("below 1/256", "the gap that is asked for, small enough for the lower bound"),
    "squared_width": ("not negative", "E_π*[Γ²]: mean square under the optimum of what was taken off the reward"),
    "posterior_kl": ("not negative", "KL(Q‖P): how far the law of the policies is from one that was chosen without data"),
    "pair_curvature": ("positive", "least eigenvalue of the covariance of feature differences of pairs"),
}
DEFAULTS = {"delta": 0.05, "residual": 0.0, "sampling_coverage": 1.0}


def check_quantities(name: str, quantities: Mapping[str, float | None]) -> dict[str, float]:
    """The quantities as floats.

    Raises:
        ArgumentError: one is not a finite number, or outside its range.
    """
    checked = {}
    for quantity, value in quantities.items():
        kind, meaning = _RULES[quantity]
        holds, expected = _KINDS[kind]
        try:
            number = float(value)  # type: ignore[arg-type]  # what is no number is refused below
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number) or not holds(number):
            raise ArgumentError(f"{name}: found {quantity} = {value!r}, expected {expected}; {quantity} is {meaning}")
        checked[quantity] = number
    return checked


def check_positive(**values: float) -> None:
    """ArgumentError for the first that is no positive, finite number, by its name."""
    for name, value in values.items():
        if not (isinstance(value, Real) and math.isfinite(value) and value > 0):
            raise ArgumentError(f"{name}: expected a positive number, found {value!r}.")


def describe(quantity: str) -> str:
    """One line on what a quantity is."""
    return _RULES[quantity][1]


def check_reward_range(reward: Tensor, reward_max: float) -> None:
    """Nothing, where every finite reward lies in [0, reward_max] (padding with −inf is allowed).

    Raises:
        ArgumentError: a reward lies outside, with the shift and range that would fit.
    """
    finite = reward[reward != -torch.inf]
    if finite.numel() == 0:
        return
    low, high = float(finite.min()), float(finite.max())
    if low < 0 or high > reward_max or not math.isfinite(high):
        raise ArgumentError(
            f"reward: found values from {low:.4g} to {high:.4g}, expected them in [0, {reward_max:.4g}]; "
            f"subtract {low:.4g} and use reward_max {high - low:.4g}, or clip"
        )
