"""A reward of completions as the tilt e^{r/β}: asked once for each text, and judged before it is used."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor

from multiref._awaited import wait_for
from multiref.errors import ArgumentError, MultirefError


class Rewarding:
    """r of completions. calls: texts that were asked about.

    Args:
        function: function(prompts=…, completions=…) → N numbers, as TRL calls reward functions, perhaps async; or None: no
            reward, 0.
        most: what it says it cannot exceed.

    −∞ is a veto. ArgumentError, naming the completion, for NaN, +∞, what is no number, and what exceeds `most`.
    """

    def __init__(self, function: Callable[..., Any] | None, most: float | None, name: str = "reward") -> None:
        self.function, self.most, self.name, self.calls = function, most, name, 0

    def __call__(self, prompt: Any, completions: Sequence[Any]) -> Tensor:
        """[N] float64."""
        if self.function is None or not completions:
            return torch.zeros(len(completions), dtype=torch.float64)
        keys = [repr(each) for each in completions]
        once = dict(zip(keys, completions))
        self.calls += len(once)
        try:
            values = self.function(prompts=[prompt] * len(once), completions=list(once.values()))
            values = wait_for(values) if inspect.isawaitable(values) else values
        except MultirefError:
            raise
        except Exception as error:
            raise ArgumentError(f"{self.name}: the function raised {type(error).__name__}: {error}.") from error
        try:
            if isinstance(values, (str, bytes, Mapping, Set)):
                raise TypeError
            found = [_number(value) for value in values]
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise ArgumentError(
                f"{self.name}: returned {str(values)[:80]!r}; expected {len(once)} numbers, one for each completion."
            ) from None
        if len(found) != len(once):
            raise ArgumentError(f"{self.name}: returned {len(found)} numbers for {len(once)} completions; expected one each.")
        for value, completion in zip(found, once.values()):
            self._judge(value, completion)
        known = dict(zip(once, found))
        return torch.tensor([known[key] for key in keys], dtype=torch.float64)

    def _judge(self, value: float, completion: Any) -> None:
        if math.isnan(value) or value == math.inf:
            raise ArgumentError(
                f"{self.name}: {value} for {str(completion)[:80]!r}; expected a finite number, or −∞ for a veto."
            )
        if self.most is not None and value > self.most + 1e-12 * max(1.0, abs(self.most)):
            raise ArgumentError(
                f"reward_max is {self.most:g}, and {str(completion)[:80]!r} has reward {value:g}. "
                "Expected a bound that no reward exceeds: give a larger reward_max."
            )


def _number(value: Any) -> float:
    """TypeError for text, which `float` reads, and for an array of several."""
    if isinstance(value, (str, bytes)):
        raise TypeError
    return float(value.item() if getattr(value, "shape", ()) == (1,) else value)
