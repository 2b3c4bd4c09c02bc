"""Zero mass, zero weight and the simplex, decided once.

A reference may give a completion probability zero (log-probability −inf) and may itself have weight zero.
Three rules, and everything above calls them by name:

- a reference of weight zero is absent: 0 · log 0 = 0 (what it says elsewhere still counts in the derivative by its weight);
- an expectation does not see what has probability zero: 0 · (±inf) = 0;
- a log-probability is −inf or finite and not above zero; NaN is refused where it enters, with the name of the argument.
"""

import math
from collections.abc import Sequence
from numbers import Real
from typing import TypeAlias

import torch
from torch import Tensor

from multiref.errors import ArgumentError, WeightsError

NEG_INF = -math.inf
Weights: TypeAlias = (
    Sequence[float] | Tensor | None
)  # [K] on the simplex, or [K, *E] where they differ per example; None is uniform
SIMPLEX_TOLERANCE = 1e-6
LOGPS_TOLERANCE = 1e-4  # float32 log-softmax rounds a certain event to a few 1e-7 above zero, a sum of them to more


def check_logps(logps: Tensor, argument: str) -> Tensor:
    """Refuse NaN and log-probabilities above zero; −inf is a legitimate value. One pass over the array."""
    if not isinstance(logps, Tensor) or not logps.is_floating_point():
        raise ArgumentError(f"{argument}: expected a floating-point tensor of log-probabilities, found {_kind(logps)}.")
    if logps.numel() and not bool((largest := logps.detach().amax()) <= LOGPS_TOLERANCE):
        found = "NaN" if torch.isnan(largest) else f"a largest entry of {float(largest):.6g}"
        raise ArgumentError(
            f"{argument}: log-probabilities are at most zero, found {found}. Were probabilities passed? Give their logarithm."
        )
    return logps


def check_beta(beta: float | Tensor) -> float | Tensor:
    """Refuse a strength that is not one positive, finite number: several would be taken for one of each completion."""
    number = isinstance(beta, Tensor | Real) and not isinstance(beta, bool)
    value = torch.as_tensor(beta if number else math.nan, dtype=torch.float64)
    if value.ndim or not 0 < float(value) < math.inf:
        raise ArgumentError(
            f"beta: the strength of the regularizer is one positive, finite number, found {beta!r}; expected one such as 0.1."
        )
    return beta


def check_weights(weights: Weights, n_references: int) -> Tensor:
    """None, a sequence or a tensor → float64 weights [K, …] on the simplex along the first axis.

    None is uniform. Sums within 1e-6 of one are normalised (float32 weights are), others refused.

    Raises:
        WeightsError: NaN, negative, of the wrong length, or off the simplex.
    """
    if n_references < 1:
        raise WeightsError("weights: found no reference, expected at least one.")
    if weights is None:
        return torch.full((n_references,), 1.0 / n_references, dtype=torch.float64)
    try:
        tensor = weights if isinstance(weights, Tensor) else torch.tensor(list(weights), dtype=torch.float64)
        tensor = tensor.to(torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(f"weights: expected {n_references} numbers, found {weights!r}.") from error
    if tensor.ndim == 0 or tensor.shape[0] != n_references:
        raise WeightsError(
            f"weights: {n_references} references need {n_references} weights, found shape {tuple(tensor.shape)}. "
            "Give one number for each, with sum 1."
        )
    values = tensor.detach()
    if bool(torch.isnan(values).any()) or bool((values < 0).any()):
        raise WeightsError(f"weights: expected numbers of at least zero, found {_short(values)}.")
    total = values.sum(0)
    if bool(((total - 1).abs() > SIMPLEX_TOLERANCE).any()):
        raise WeightsError(
            f"weights: expected a sum of one, found {_short(total)} from {_short(values)}. Divide them by their sum?"
        )
    normalised: Tensor = tensor / tensor.sum(0)
    return normalised


def broadcast(*shapes: torch.Size) -> torch.Size:
    """The shape that they have together. RuntimeError where they have none."""
    return torch.Size(torch.broadcast_shapes(*shapes))


def align(ref_logps: Tensor, axes: int) -> Tensor:
    """[K, *E] → [K, 1, …, *E] with at least so many axes after the first: who has fewer has the last ones, as in every
    broadcast, and the references are no batch."""
    if not isinstance(ref_logps, Tensor) or not ref_logps.ndim:
        found = "a scalar" if isinstance(ref_logps, Tensor) else _kind(ref_logps)
        raise ArgumentError(f"ref_logps: expected a tensor with the references along the first axis, found {found}.")
    return ref_logps.reshape(len(ref_logps), *[1] * (axes + 1 - ref_logps.ndim), *ref_logps.shape[1:])


def expand_weights(weights: Tensor, like: Tensor) -> Tensor:
    """[K] or [K, *E] → broadcastable to `like` [K, *E, …]. Axes are matched from the left:
    [K, B] weighs prompts of [K, B, Y]."""
    if weights.ndim > like.ndim:
        raise WeightsError(
            f"weights: shape {tuple(weights.shape)} has more axes than the log-probabilities {tuple(like.shape)}. "
            "Expected [K], or [K, *E] where weights differ by example."
        )
    shaped = weights.reshape(*weights.shape, *([1] * (like.ndim - weights.ndim)))
    if any(w not in (1, n) for w, n in zip(shaped.shape[1:], like.shape[1:])):
        raise WeightsError(
            f"weights: shape {tuple(weights.shape)} does not match log-probabilities of shape {tuple(like.shape)}. "
            "Expected [K], or [K, *E] where weights differ by example."
        )
    return shaped.to(device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))


def prompt_weights(weights: Weights, ref_logps: Tensor) -> Tensor:
    """[K] or [K, *B], beside [K, *B, Y] → broadcastable to [K, *B]. WeightsError for weights of completions, [K, *B, Y]."""
    return expand_weights(check_weights(weights, ref_logps.shape[0]), ref_logps.new_empty(ref_logps.shape[:-1]))


def weighted_sum(logps: Tensor, weights: Tensor, full: bool | None = None) -> Tensor:
    r"""[K, *E], [K, …] → [*E]: Σ_k w_k log p_k with 0 · (−inf) = 0; gradients are finite wherever the value is.

    full: whether no weight is zero, where that is known; to look waits for an accelerator.
    """
    logps = logps.to(torch.promote_types(logps.dtype, torch.float32))  # half of the digits of a half would go in the sum
    whole = logps.ndim and weights.numel() == logps.shape[0] and not weights.requires_grad
    if whole and (not bool((weights == 0).any()) if full is None else full):
        total: Tensor = torch.tensordot(weights.reshape(-1).to(logps.dtype), logps, dims=1)
        return total
    no_mass = logps == NEG_INF
    vetoed = (no_mass & (weights > 0)).any(0)
    return torch.where(vetoed, NEG_INF, (weights * torch.where(no_mass, 0.0, logps)).sum(0))


def expectation(log_p: Tensor, values: Tensor, dim: int = -1) -> Tensor:
    r"""Σ_y p(y) v(y) over `dim`, where 0 · (±inf) = 0."""
    p = log_p.exp()
    return (p * torch.where(p > 0, values, 0.0)).sum(dim)


def log_ratio(log_p: Tensor, log_q: Tensor, under: Tensor) -> Tensor:
    """log p − log q, set to 0 where `under` (the log-mass that it will be averaged over) has no mass,
    so that neither value nor gradient sees it."""
    nothing = under.exp() == 0
    return torch.where(nothing, 0.0, log_p) - torch.where(nothing, 0.0, log_q)


def _kind(value: object) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"{type(value).__name__}"


def _short(values: Tensor | Sequence[float]) -> str:
    numbers = torch.as_tensor(values).reshape(-1)
    shown = ", ".join(f"{float(x):.6g}" for x in numbers[:6])
    return f"[{shown}{', …' if numbers.numel() > 6 else ''}]" if numbers.numel() != 1 else f"{float(numbers[0]):.6g}"
