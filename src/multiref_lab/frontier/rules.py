"""What each rule minimises, offline and online, and how it is called on a page."""

from collections.abc import Callable, Sequence
from functools import partial

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
    "authors": "k3 to the mixture renormalised at each token, differentiated as a loss: it follows forward KL to that mixture, "
    "also where one reference is left",
    "single": "E_π[r] − β KL(π‖π_k): one reference; the ends of the other curves",
}

REGULARIZERS: dict[str, Callable[[tuple[float, float]], Regularizer]] = {
    "exact": ReverseKL,
    SINGLE: ReverseKL,
    "authors": ReverseKL,
    "mrpo": partial(PooledKL, order=-1),
}


def alone(weight: float, names: Sequence[str]) -> str:
    """The name of a single reference's rule on a page."""
    return f"{names[0] if weight == 1 else names[1]} alone"


def regularizer(rule: str, weights: tuple[float, float]) -> Regularizer:
    """Under which a rule trains. With a weight of zero a reference is absent, so every rule is K = 1 there."""
    return REGULARIZERS[rule](weights)


def objective(rule: str, weights: tuple[float, float], beta: float) -> Objective:
    """What preference training minimises."""
    return MultiDPO(beta, weights) if rule == "multi-dpo" else Preference(regularizer(rule, weights), beta)


def penalty(rule: str) -> str:
    """The name of online training's penalty."""
    return "k3_renormalised" if rule == "authors" else "reward"
