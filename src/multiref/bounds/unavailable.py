"""Theorems whose printed form was found without its constants: no number can be computed from them, and none is made up."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Unavailable:
    """theorem, the rate that was found, and the derived statement of that rate that has constants."""

    theorem: str
    rate: str
    instead: str

    def __str__(self) -> str:
        found = (
            f"{self.theorem}: only its rate was found, {self.rate}; its constants are not available, so no value is computed"
        )
        return f"{found}. `{self.instead}` is a derived bound of that rate"


UNAVAILABLE: Mapping[str, Unavailable] = {
    "reverse-kl-5-3": Unavailable(
        "Theorem 5.3 of arXiv 2502.01203 (reverse KL, plain reward)", "O(1/√n)", "reverse-kl-plain-reward"
    ),
    "forward-kl-6-3": Unavailable(
        "Theorem 6.3 of arXiv 2502.01203 (forward KL, plain reward)", "O(1/√n) at γ = n", "forward-kl-versus-comparator"
    ),
}
