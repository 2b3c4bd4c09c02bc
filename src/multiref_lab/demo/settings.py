"""What a demo run is: its world, the objective as stated, the rules that are compared, the pairs, the training."""

import dataclasses
from dataclasses import dataclass

from multiref.errors import ArgumentError
from multiref.regularizers import ForwardKL, PooledKL, Regularizer, ReverseKL, check_beta, check_weights
from multiref_lab.demo.authors import REFERENCES, WorldSettings
from multiref_lab.demo.preferences import PairLaw

EXACT = "reverse KL, both"
LAW, WORLD = PairLaw(), WorldSettings()


@dataclass(frozen=True)
class DemoSettings:
    """The objective as stated is E_π[r] − β Σ_k w_k KL(π‖π_k), r = law.scale × points.

    seeds: how many repetitions; seed s decides prompts, answers, labels and the order of training, not the world.
    """

    beta: float = 2.0
    weights: tuple[float, ...] = (0.7, 0.3)
    seeds: int = 3
    law: PairLaw = LAW
    epochs: int = 1
    pairs_per_step: int = 128
    learning_rate: float = 1e-3
    held_out_prompts: int = 200
    curve_points: int = 10
    world: WorldSettings = WORLD

    def __post_init__(self) -> None:
        check_beta(self.beta)
        check_weights(self.weights, len(REFERENCES))
        counts = (self.seeds, self.epochs, self.pairs_per_step, self.held_out_prompts, self.curve_points)
        if min(counts) < 1 or not self.learning_rate > 0:
            raise ArgumentError(
                f"seeds, epochs, pairs_per_step, held_out_prompts, curve_points ≥ 1 and learning_rate > 0; found {self}"
            )


FULL = DemoSettings()
QUICK = dataclasses.replace(
    FULL,
    law=PairLaw(prompts=300),
    pairs_per_step=64,
    held_out_prompts=60,
    curve_points=3,
    world=WorldSettings(base_steps=250, specialist_steps=120),
)


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
