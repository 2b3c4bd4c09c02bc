"""What statements there are; and theorems whose printed form was found without its constants: no number can be computed from
them, and none is made up."""

from collections.abc import Mapping
from dataclasses import dataclass

from multiref.bounds import clipping, preferences, rates, stability
from multiref.bounds.statement import Statement


def statements() -> Mapping[str, Statement]:
    """Every statement, by the name that the command line uses, in the order of the files."""
    values = [value for file in (preferences, stability, rates, clipping) for value in vars(file).values()]
    return {each.name: each for each in values if isinstance(each, Statement)}


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
