"""What disagreement per token means for coverage."""

import math
from dataclasses import dataclass

EMPTY = 1e-3  # a geometric pool whose total mass is below this has lost 99.9 % of what one reference alone has


@dataclass(frozen=True)
class Coverage:
    """disagreement: −log F per token (weights as named), mean and standard error;
    at `length` tokens F ≈ e^{−disagreement · length}.

    inverse_mass: 1/F at that length, the factor by which coverage constants grow when data come from the references themselves.
    empty_at: the length in tokens at which F falls below 1/1000; infinite where the references agree.
    """

    disagreement: float
    error: float
    length: float
    inverse_mass: float
    empty_at: float


def coverage(disagreement: float, error: float, *, length: float) -> Coverage:
    """Mean −log F_t per token, with its standard error → what it means for completions of this length.

    F = E_{y∼pool}[exp(−Σ_t D_t)] with D_t = −log F_t ≥ 0; taken here as exp(−length · mean D_t),
    with D_t at the contexts of the data.

    Reference: docs/theory.md 4 and 5: C ≤ e^{R/β}/F for pairs drawn from the references. DERIVED.
    """
    mean = max(disagreement, 0.0)
    return Coverage(
        mean,
        error,
        length,
        math.exp(min(mean * length, 700.0)),
        -math.log(EMPTY) / mean if mean > 0 else math.inf,
    )
