"""What each rule minimises, offline and online, and how it is called on a page."""

from collections.abc import Sequence

from multiref.errors import ArgumentError
from multiref.regularizers import PooledKL, Regularizer, ReverseKL
from multiref.training import MultiDPO, Objective, Preference
from multiref_lab.frontier.grid import SINGLE

LABELS = {
    "exact": "exact reverse KL",
    "mrpo": "MRPO's pool",
    "multi-dpo": "Multi-DPO",
    "authors": "authors' recipe",
}
FORMULAS = {
    "exact": "E_π[r] − β Σ_k w_k KL(π‖π_k): the objective as stated; its pool is geometric",
    "mrpo": "E_π[r] − β KL(π‖P), P = 1 / Σ_k (w_k / π_k): a bound of it; the pool is harmonic (without clipping and adaptive "
    "weights)",
    "multi-dpo": "Σ_k w_k DPO loss against π_k: the weighted sum of K losses",
    "authors": "k3 to the mixture renormalised at each token, differentiated as a loss: "
    "it follows forward KL to that mixture, also "
    "where one reference is left",
    "single": "E_π[r] − β KL(π‖π_k): one reference; the ends of the other curves",
}


def label(rule: str, weight: float, names: Sequence[str]) -> str:
    """The rule's name on a page; of a single reference, whose."""
    return f"{names[0] if weight == 1 else names[1]} alone" if rule == SINGLE else LABELS[rule]


def objective(rule: str, weights: tuple[float, float], beta: float) -> Objective:
    """What preference training minimises. With a weight of zero a reference is absent, so every rule is K = 1 there."""
    if rule in ("exact", SINGLE):
        return Preference(ReverseKL(weights), beta)
    if rule == "mrpo":
        return Preference(PooledKL(weights, order=-1), beta)
    if rule == "multi-dpo":
        return MultiDPO(beta, weights)
    raise ArgumentError(f"rule: {rule!r} is no rule of preference training.")


def online_rule(rule: str, weights: tuple[float, float]) -> tuple[Regularizer, str]:
    """(regularizer, name of the penalty) of online training."""
    if rule in ("exact", SINGLE):
        return ReverseKL(weights), "reward"
    if rule == "mrpo":
        return PooledKL(weights, order=-1), "reward"
    if rule == "authors":
        return ReverseKL(weights), "k3_renormalised"
    raise ArgumentError(f"rule: {rule!r} is no rule of online training.")
