"""How many pairs one would need to see an effect."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from multiref.errors import ArgumentError
from multiref.evaluation.inspection.score_test import ScoreTest

POWER = 0.9


@dataclass(frozen=True)
class SampleSize:
    """A reference, what it is added to, and how many pairs show the effect at 90 % power; inf where it points the other way."""

    name: str
    given: tuple[str, ...]
    pairs: float


def plan_pairs(tests: Sequence[ScoreTest], *, pairs: int, significance: float, gain: float | None = None) -> list[SampleSize]:
    """Pairs needed to see each reference's effect, with as many pairs a prompt as there are now.

    z grows as √P, so an effect that gave z at P pairs gives q + q_power, q = Φ⁻¹(1 − significance), at

        P' = P ((q + q_power) / z)²

    and one of g nats a pair, for which z² ≈ 2 g P / inflation, at P' = inflation (q + q_power)² / 2g.

    Args:
        tests: of the references; pairs: P.
        significance: one-sided, of each test.
        gain: g, the size named; None: the size found. (The size found is an estimate; so is what comes out.)

    Errors: ArgumentError for a gain that is not above 0.
    """
    if gain is not None and not gain > 0:
        raise ArgumentError(f"gain is {gain}; expected nats per pair above 0.")
    reach = NormalDist().inv_cdf(1 - significance) + NormalDist().inv_cdf(POWER)

    def needed(test: ScoreTest) -> float:
        if gain is not None:
            return math.ceil(test.inflation * reach**2 / (2 * gain))
        return math.ceil(pairs * (reach / test.z) ** 2) if test.z > 0 else math.inf

    return [SampleSize(test.name, test.given, needed(test)) for test in tests]
