"""What every exact function checks of its arguments, once, with the argument named."""

import contextlib

import torch
from torch import Tensor

from multiref._logspace import NEG_INF, broadcast
from multiref.errors import ArgumentError, EmptyPoolError


def check_reward(reward: Tensor) -> Tensor:
    """A floating-point [*B, Y], finite or −inf (padding)."""
    if not isinstance(reward, Tensor) or not reward.is_floating_point() or reward.ndim == 0:
        raise ArgumentError(
            f"reward: expected a floating-point tensor [*B, Y], found {getattr(reward, 'dtype', type(reward).__name__)}."
        )
    if reward.numel() and not bool((largest := reward.detach().amax()) < float("inf")):
        raise ArgumentError(f"reward: expected finite numbers (−inf pads), found {'NaN' if largest != largest else '+inf'}.")
    return reward


def check_shapes(reward: Tensor, ref_logps: Tensor) -> torch.Size:
    """reward [*B, Y] broadcasts to ref_logps [K, *B, Y]; returns [*B, Y]."""
    if ref_logps.ndim < 2:
        raise ArgumentError(
            f"ref_logps: expected references first and completions last, [K, *B, Y], found shape {tuple(ref_logps.shape)}."
        )
    with contextlib.suppress(RuntimeError):
        if (shape := broadcast(reward.shape, ref_logps.shape[1:]))[-1] == ref_logps.shape[-1] == reward.shape[-1]:
            return shape
    found = f"reward {tuple(reward.shape)} does not match ref_logps {tuple(ref_logps.shape)}"
    raise ArgumentError(f"{found}: expected [*B, Y] against [K, *B, Y].")


def check_policy_shape(log_policy: Tensor, shape: torch.Size) -> None:
    """log_policy broadcasts to [*B, Y] and has Y completions."""
    matches = log_policy.ndim <= len(shape) and log_policy.ndim > 0 and log_policy.shape[-1] == shape[-1]
    if not (matches and all(n in (1, m) for n, m in zip(reversed(log_policy.shape), reversed(shape)))):
        raise ArgumentError(
            f"log_policy: expected the completions of the problem, {tuple(shape)}, found shape {tuple(log_policy.shape)}."
        )


def check_mass(log_pool: Tensor, reward: Tensor, name: str) -> None:
    """Refuse rows in which no completion has both pooled mass and a reward."""
    empty = ((log_pool.detach() == NEG_INF) | (reward.detach() == NEG_INF)).all(-1)
    if not bool(empty.any()):
        return
    rows = empty.nonzero().tolist()[:5] if empty.ndim else []
    where = ", ".join(str(row[0] if len(row) == 1 else tuple(row)) for row in rows)
    where = f" in {int(empty.sum())} of {empty.numel()} rows (first: {where})" if rows else ""
    raise EmptyPoolError(
        f"ref_logps: the pool of {name} is empty{where}: every completion with a reward has probability zero under it. "
        "For a pool of order ≤ 0 one reference's zero is a veto: "
        "give the references common support, drop the one that vetoes, or use ForwardKL."
    )
