"""Whether a step moves the weights: an update below half the distance to the next number of the weight's format is lost. And
whether it leaves them numbers."""

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from multiref.errors import ModelError, MultirefNotice, MultirefWarning

UPDATES = 10
_ENTRIES = 65_536  # of each tensor, evenly spread


class LostUpdates:
    """Over the first `UPDATES` steps with a learning rate above zero: of the entries with a gradient, the share that a step
    left as it was.

        lost = #{i : g_i ≠ 0, w_i + Δ_i = w_i} / #{i : g_i ≠ 0}

    It looks on at each step that the optimizer makes, and `conclude` stands behind the last one. Where an optimizer keeps
    gradients elsewhere (DeepSpeed), nothing is seen and nothing is said.

    Args:
        waits: steps without any gradient are not counted.
    """

    def __init__(self, model: nn.Module, optimizer: Any, *, waits: bool = False) -> None:
        self._model, self._left, self._waits = model, UPDATES, waits
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []
        self._lost = self._all = self._steps = 0
        inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's holds the one that makes steps
        if isinstance(inner, torch.optim.Optimizer):
            inner.register_step_pre_hook(self._before)
            inner.register_step_post_hook(self._after)

    def _before(self, optimizer: Any, *_: Any) -> None:
        """Gradients are there, the step is not made."""
        if self._left <= 0 or not max(group["lr"] for group in optimizer.param_groups) > 0:
            return
        found = [(p, p.grad) for p in self._model.parameters() if p.grad is not None and p.numel()]
        if not self._waits or any(bool(gradient.any()) for _, gradient in found):
            self._left -= 1
            self._kept = [(p, _some(p).clone(), _some(gradient) != 0) for p, gradient in found]

    def _after(self, *_: Any) -> None:
        for parameter, was, moved in self._kept:
            self._lost += int(((_some(parameter) == was) & moved).sum())
            self._all += int(moved.sum())
        self._steps += bool(self._kept)
        self._kept = []

    def conclude(self, summed: Callable[[Tensor], Tensor] = lambda counts: counts, *, last: bool = False) -> float | None:
        """The share, with a warning, where it is above a half; once, after `UPDATES` steps or at the `last`.

        Args:
            summed: adds [2] counts up over processes.
        """
        if self._left < 0 or (self._left and not last):
            return None
        self._left = -1
        device = next(self._model.parameters()).device
        lost, all_of_them = summed(torch.tensor([self._lost, self._all], device=device)).tolist()
        if self._steps and not all_of_them:
            warnings.warn(
                f"No weight had a gradient in the first {self._steps} steps: nothing is trained. Rewards or "
                "sides that are all the same do that, and an objective that does not depend on the policy.",
                MultirefNotice,
                stacklevel=2,
            )
        if lost <= 0.5 * all_of_them:
            return None
        kinds = {str(p.dtype).removeprefix("torch.") for p in self._model.parameters() if p.requires_grad}
        remedy = "raise the learning rate"
        if kinds != {"float32"}:
            remedy = f"train float32 weights (model.dtype: float32; bf16: true computes in bfloat16 all the same), or {remedy}"
        warnings.warn(
            f"{lost / all_of_them:.1%} of the entries with a gradient did not move in the first steps: their updates are "
            f"smaller than {', '.join(sorted(kinds))} weights can take up; {remedy}.",
            MultirefWarning,
            stacklevel=2,
        )
        return float(lost / all_of_them)


def all_numbers(tensors: Iterable[Any]) -> bool:
    """Whether this process's parts of them are all numbers; −∞ is one, a probability of zero in a table."""
    return all(bool(((part.to_local() if hasattr(part, "to_local") else part) < math.inf).all()) for part in tensors)


def diverged(what: str, step: int) -> ModelError:
    """What is said of training whose loss, gradient or weights are no number."""
    return ModelError(
        f"The {what} at step {step}: training diverged. Go on from an earlier checkpoint, or begin anew, with a lower "
        "learning_rate, a longer warm-up or a smaller max_grad_norm."
    )


def _some(tensor: Any) -> Tensor:
    """At most `_ENTRIES` entries of this process's part, evenly spread."""
    flat = (tensor.to_local() if hasattr(tensor, "to_local") else tensor).detach().reshape(-1)
    some: Tensor = flat[:: max(1, -(-flat.numel() // _ENTRIES))]
    return some
