"""Where a function of one positive quantity meets a target: bisection on logarithms."""

import math
from collections.abc import Callable

from multiref.errors import ArgumentError

_CELLS, _HALVINGS = 400, 200
_LARGEST = math.log(1e300)


def solve(value: Callable[[float], float], *, start: float, least: float, target: float) -> float:
    """x with value(x) = target: the last crossing where the value falls for good, or the first where it rises.

    Looked for in the largest interval around `start` within [least, 1e300] on which the function is defined (not NaN).

    Raises:
        ArgumentError: no x there reaches the target; the message says between which values it moves.
    """

    def log_value(log_x: float) -> float:
        """NaN where the value has none, −∞ where it is not above zero."""
        found = value(math.exp(log_x))
        return math.log(found) if found > 0 else found if math.isnan(found) else -math.inf

    here, log_target = math.log(start) if start > 0 else 0.0, math.log(target)
    low, high = (_edge(log_value, here, far) for far in (math.log(least), _LARGEST))
    grid = [low + (high - low) * i / _CELLS for i in range(_CELLS)] + [high]
    above = [log_value(x) > log_target for x in grid]
    crossings = [i for i in range(_CELLS) if above[i] != above[i + 1]]
    if not crossings:
        values = [math.exp(min(log_value(x), 700.0)) for x in grid]
        raise ArgumentError(f"moves the bound only between {min(values):.4g} and {max(values):.4g}")
    falls = not above[-1]
    cell = crossings[-1] if falls else crossings[0]
    low, high = grid[cell], grid[cell + 1]
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if (log_value(middle) > log_target) == falls else (low, middle)
    return math.exp(high if falls else low)


def _edge(log_value: Callable[[float], float], inside: float, outside: float) -> float:
    """How far from `inside` towards `outside` the function is defined."""
    if not math.isnan(log_value(outside)):
        return outside
    for _ in range(_HALVINGS):
        middle = 0.5 * (inside + outside)
        inside, outside = (inside, middle) if math.isnan(log_value(middle)) else (middle, outside)
    return inside
