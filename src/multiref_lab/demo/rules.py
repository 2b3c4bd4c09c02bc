"""The rules that are compared: which regularizer each trains under, and what it says in one line."""

from dataclasses import dataclass

from multiref.regularizers import ForwardKL, PooledKL, Regularizer, ReverseKL
from multiref_lab.demo.authors import REFERENCES

EXACT = "reverse KL, both"


@dataclass(frozen=True)
class Rule:
    """A name for tables, the regularizer, the objective as a formula, and why it is in the comparison."""

    name: str
    regularizer: Regularizer
    formula: str
    why: str


def rules(weights: tuple[float, ...]) -> list[Rule]:
    """The exact rule first; K = 2."""
    shown = "w = (" + ", ".join(f"{w:g}" for w in weights) + ")"
    stated, reverse = f"E_π[r] − β Σ_k w_k KL(π‖π_k),  {shown}", "the objective as stated; its pool is geometric"
    turned, forward = f"E_π[r] − β Σ_k w_k KL(π_k‖π),  {shown}", "the other direction; its pool is arithmetic"
    harmonic = "E_π[r] − β KL(π‖P),  P = 1 / Σ_k (w_k / π_k)"
    return [
        Rule(EXACT, ReverseKL(weights), stated, reverse),
        Rule("forward KL, both", ForwardKL(weights), turned, forward),
        Rule("MRPO's pool, both", PooledKL(weights, order=-1), harmonic, "a surrogate with the harmonic pool"),
        *(
            Rule(f"{name} alone", ReverseKL(alone), f"E_π[r] − β KL(π‖{name})", "one reference, as in DPO")
            for name, alone in zip(REFERENCES, ((1.0, 0.0), (0.0, 1.0)), strict=True)
        ),
    ]
