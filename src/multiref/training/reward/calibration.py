"""Does a margin of m mean that the pair goes that way with probability σ(m)?"""

from dataclasses import dataclass

import torch
from torch import Tensor

from multiref.errors import ArgumentError


@dataclass(frozen=True)
class Bin:
    """Pairs of about one confidence: their mean confidence, the share that went that way, and how many they are."""

    confidence: float
    accuracy: float
    count: float


@dataclass(frozen=True)
class Calibration:
    """error: the expected calibration error. bins: the points of a reliability diagram, empty bins left out."""

    error: float
    bins: tuple[Bin, ...]

    def __str__(self) -> str:
        rows = "\n".join(f"  {b.confidence:.3f}  {b.accuracy:.3f}  {b.count:g}" for b in self.bins)
        return f"expected calibration error {self.error:.4f}\n  confidence  accuracy  pairs\n{rows}"


def calibration(margins: Tensor, counts: Tensor | None = None, *, bins: int = 10) -> Calibration:
    r"""[P] margins r(chosen) − r(rejected), [P] how much each pair counts → the calibration of σ(margin).

        ECE = Σ_b (n_b/n) |accuracy_b − confidence_b|

    A pair has no side of its own, so a prediction is the side with the larger reward, its confidence σ(|m|) ∈ [½, 1],
    and it is right where m > 0 (half right at a tie). `bins` of equal width over [½, 1];
    within a bin confidence and accuracy are means.

    Raises:
        ArgumentError: no pair, a margin that is not finite, or fewer than one bin.

    Reference: Guo et al., 2017, for the expected calibration error; for pairs DERIVED.
    """
    margins = margins.double().flatten()
    counts = torch.ones_like(margins) if counts is None else counts.double().flatten()
    if not len(margins) or bins < 1 or not bool(margins.isfinite().all()) or counts.shape != margins.shape:
        raise ArgumentError(
            "calibration: expected finite margins of at least one pair, as many counts and at least one bin; found "
            f"{tuple(margins.shape)}, {tuple(counts.shape)}, {bins}"
        )
    confidence = torch.sigmoid(margins.abs())
    right = (torch.sign(margins) + 1) / 2
    place = ((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    weight, sure, true = (
        torch.zeros(bins, dtype=torch.float64).index_add(0, place, counts * x)
        for x in (torch.ones_like(margins), confidence, right)
    )
    error = ((true - sure).abs().sum() / weight.sum()).item()
    return Calibration(
        error, tuple(Bin(*(float(x) for x in (s / w, t / w, w))) for s, t, w in zip(sure, true, weight, strict=True) if w > 0)
    )
