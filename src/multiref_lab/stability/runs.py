"""Which examples each run trains on: all of them, one replaced, one left out; and everything but that example the same."""

from dataclasses import dataclass

import torch
from torch import Tensor

from multiref.errors import ArgumentError


@dataclass(frozen=True)
class Runs:
    """M = 2 + replaced + left_out runs on n examples. Rows 0 … n−1 are the examples, row n + j the spare that run 1 + j gets
    for example j.

    Run 0: all n. Runs 1 … R: example j replaced. Runs R + 1 … R + L: example R + j left out.
    The last run: all n again, with other random numbers in training (what a rerun moves anyway).
    Examples are drawn independently, so exchanging the first ones is exchanging random ones.
    """

    samples: int
    replaced: int
    left_out: int

    def __post_init__(self) -> None:
        least = self.replaced + self.left_out + 1
        if self.samples < least or self.replaced < 1 or self.left_out < 0:
            raise ArgumentError(
                f"samples: found {self.samples} with {self.replaced} replaced and {self.left_out} left out, expected at least "
                f"{least} samples and one replacement"
            )

    @property
    def rows(self) -> int:
        """n + spares."""
        return self.samples + self.replaced

    @property
    def count(self) -> int:
        """M."""
        return 2 + self.replaced + self.left_out

    @property
    def changed(self) -> Tensor:
        """[M]: the example that each run lacks; −1 where it lacks none."""
        return torch.tensor([-1, *range(self.replaced + self.left_out), -1])

    @property
    def instead(self) -> Tensor:
        """[M]: the row that stands in for it; −1 where none does."""
        spares = [self.samples + j for j in range(self.replaced)]
        return torch.tensor([-1, *spares, *[-1] * self.left_out, -1])

    @property
    def weights(self) -> Tensor:
        """[M, N] float64: 1 where the run trains on the row."""
        row = torch.arange(self.rows)
        kept = (row < self.samples) & (row != self.changed[:, None]) | (row == self.instead[:, None])
        return kept.double()

    def rows_of(self, drawn: Tensor, second: Tensor) -> Tensor:
        """[*, 1, B] examples drawn for all runs alike → [*, M, B] rows: a replaced example becomes its spare,
        one left out becomes `second` (or its neighbour)."""
        shape = (*[1] * (drawn.ndim - 2), -1, 1)
        gone, new = self.changed.reshape(shape), self.instead.reshape(shape)
        other = torch.where(second == gone, (gone + 1) % self.samples, second)
        return torch.where(drawn == gone, torch.where(new >= 0, new, other), drawn.expand(*drawn.shape[:-2], self.count, -1))

    def split(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[S, M, …] → runs with one replaced [S, R, …], with one left out [S, L, …], and the rerun [S, 1, …]."""
        return values[:, 1 : 1 + self.replaced], values[:, 1 + self.replaced : -1], values[:, -1:]
