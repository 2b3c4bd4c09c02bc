"""Rewards of rows of token ids: padded side by side where that changes nothing, else one row a pass."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from multiref.errors import ModelError, MultirefWarning
from multiref.models.architecture import as_its_weights_are, check_rows, evaluating, run
from multiref.models.encoding import Encoded, context_of
from multiref.models.noise import zeros_moved
from multiref.models.witness import NoCopy, Witness, dtype_of, is_sharded

TOLERANCE = 1e-4  # of the largest reward, in float32 or wider
_log = logging.getLogger("multiref")
_known: "WeakKeyDictionary[nn.Module, dict[bool, tuple[int, int, int]]]" = WeakKeyDictionary()
"""Model → whether padding stands → tokens of the shortest and the longest row, rows side by side."""


def rewards_of_rows(model: Any, rows: Sequence[Sequence[int]], pad: int, *, batch: int = 16) -> Tensor:
    """[N]: the reward of each row of token ids, audited (`stands_padded`). Differentiable."""
    if not rows:
        return torch.zeros(0)
    together = stands_padded(model, rows, pad, batch=batch)
    return torch.cat(list(passes(model, rows, pad, batch if together else 1)))


def stands_padded(model: Any, rows: Sequence[Sequence[int]], pad: int, *, batch: int) -> bool:
    """Whether rows of these lengths have the rewards side by side that they have alone. A model is asked once, and again for
    lengths, or more rows at once, that are not between those it was asked about. A head that is zero is moved for the time.

    The longest, and the shortest beside them, go through together and alone: to 1e-4 of the largest reward, by the model itself
    in float32, a float32 copy of one in half precision, a float64 copy where that differs; without a copy to what the dtype
    rounds.
    """
    order = sorted(set(map(tuple, rows)), key=len)
    check_rows(model, [Encoded(row, (), ()) for row in order])
    asked = len(order[0]), len(order[-1]), min(batch, len(rows))
    past = _known.setdefault(model, {})
    for stands, (shortest, longest, most) in past.items():
        if not stands or (shortest <= asked[0] and asked[1] <= longest and asked[2] <= most):
            return stands
    context = context_of(getattr(model, "config", None))
    if context is not None and context < asked[1]:
        warnings.warn(
            f"{type(model).__name__} has a context of {context} tokens, and a row has {asked[1]}: its reward is of more than "
            "the model was trained to read. Give shorter texts (a smaller max_new_tokens).",
            MultirefWarning,
            stacklevel=3,
        )
    few = [order[0], *order[1:][-max(1, batch - 1) :]]
    with torch.inference_mode(False), torch.no_grad(), evaluating(model), as_its_weights_are(model), zeros_moved(model):
        try:
            error, limit = _error(model, few, pad), TOLERANCE
        except IndexError as problem:  # positions that were learned
            raise ModelError(f"{type(model).__name__} does not run on a row of {asked[1]} tokens ({problem}).") from problem
        for dtype in (torch.float32, torch.float64):
            if error <= limit:
                break
            if dtype_of(model).itemsize < dtype.itemsize:
                try:
                    error = _error(Witness(model, 1).widened(dtype).model, few, pad)
                except (NoCopy, torch.OutOfMemoryError):
                    limit = 16 * torch.finfo(dtype_of(model)).eps
    stands = error <= limit
    was = past.get(True, asked)
    past[stands] = min(was[0], asked[0]), max(was[1], asked[1]), max(was[2], asked[2])
    if not stands:
        what = f"{type(model).__name__}: a reward depends on the rows beside it (by {error:.1g} of the largest)"
        if is_sharded(model):
            raise ModelError(f"{what}, and a sharded model cannot score one row a pass. Train it on one device.")
        _log.warning("%s; every row has a pass of its own.", what)
    return stands


def _error(model: Any, rows: Sequence[Sequence[int]], pad: int) -> float:
    """The largest difference of a reward, over the largest reward, of the shortest and the two longest."""
    some = sorted({0, len(rows) - 2, len(rows) - 1} & set(range(len(rows))))
    together = torch.cat(list(passes(model, rows, pad, len(rows))))[some].double()
    alone = torch.cat(list(passes(model, [rows[n] for n in some], pad, 1))).double()
    return float((together - alone).abs().max() / alone.abs().max().clamp_min(1e-30))


def passes(model: Any, rows: Sequence[Sequence[int]], pad: int, batch: int) -> Iterator[Tensor]:
    """The rewards of so many rows at a time, differentiable."""
    device = next(model.parameters()).device
    for start in range(0, len(rows), batch):
        some = rows[start : start + batch]
        width = max(map(len, some))
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in some], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in some], device=device)
        yield run(model, input_ids=ids, attention_mask=mask).logits[:, 0]
