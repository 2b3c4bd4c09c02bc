"""Weights that change while training, as callbacks whose state is saved in every checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from multiref.training.objectives import Objective, PairLogps

__all__ = ["WeightStrategy"]


class WeightStrategy(TrainerCallback, ExportableState):
    """Where a step's weights come from. A `TrainerCallback` with state: a resumed run goes on with the same weights.

    The trainer calls `start(names)` once, `weights(pairs)` before each loss and `observe(pairs, objective)` after it.
    """

    def start(self, names: Sequence[str]) -> None:
        """The names of the K references, in order."""
        self.names = tuple(names)

    def weights(self, pairs: PairLogps) -> Tensor:
        """[K], or [K, B] for each pair its own."""
        raise NotImplementedError

    @torch.no_grad()
    def observe(self, pairs: PairLogps, objective: Objective) -> None:
        """See the pairs of a training pass; by default, nothing."""

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {}}
