"""The rules that are compared: which regularizer each trains under, and what it says in one line."""

from __future__ import annotations

from dataclasses import dataclass

from multiref.regularizers import ForwardKL, PooledKL, Regularizer, ReverseKL
from multiref_lab.demo.world import REFERENCES

__all__ = ["EXACT", "Rule", "rules"]

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
    shown = ", ".join(f"{w:g}" for w in weights)
    alone = [tuple(1.0 if i == k else 0.0 for i in range(len(REFERENCES))) for k in range(len(REFERENCES))]
    return [
        Rule(
            EXACT,
            ReverseKL(weights),
            f"E_π[r] − β Σ_k w_k KL(π‖π_k),  w = ({shown})",
            "the objective as stated; its pool is geometric",
        ),
        Rule(
            "forward KL, both",
            ForwardKL(weights),
            f"E_π[r] − β Σ_k w_k KL(π_k‖π),  w = ({shown})",
            "the other direction; its pool is arithmetic",
        ),
        Rule(
            "MRPO's pool, both",
            PooledKL(weights, order=-1),
            "E_π[r] − β KL(π‖P),  P = 1 / Σ_k (w_k / π_k)",
            "a surrogate with the harmonic pool",
        ),
        *(
            Rule(f"{name} alone", ReverseKL(w), f"E_π[r] − β KL(π‖{name})", "one reference, as in DPO")
            for name, w in zip(REFERENCES, alone, strict=True)
        ),
    ]
