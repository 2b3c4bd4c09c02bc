"""Regularizers: the one choice that a user states, as a small value, and hands to every room above.

Each is β times a divergence of the policy π to K weighted references, which collapses *exactly* into one to a pool P of them.
A member states two numbers, α (which f) and ρ (which pool); the formulas are shared:

    pool            P = power mean of order ρ of the references
    implicit reward r = β f'(π/P),  f'(t) = (t^(α−1) − 1)/(α − 1),  log t at α = 1          (up to a constant per prompt)
    tilt            π* = P · (1 + (α−1)(r − λ)/β)_+^{1/(α−1)},      P · e^{(r − λ)/β} at α = 1
    penalty         Σ_k w_k D_α(π‖π_k)
"""

from multiref._logspace import Weights, check_beta, check_weights
from multiref.regularizers._alpha import AlphaDivergence, ForwardKL, PooledKL, ReverseKL
from multiref.regularizers._f_divergence import FDivergence
from multiref.regularizers._regularizer import Regularizer

__all__ = [
    "AlphaDivergence",
    "FDivergence",
    "ForwardKL",
    "PooledKL",
    "Regularizer",
    "ReverseKL",
    "Weights",
    "check_beta",
    "check_weights",
]
