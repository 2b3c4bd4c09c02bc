"""The weights under which the pooled reference predicts preferences best: a convex problem, solved exactly."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from multiref.errors import ArgumentError
from multiref.weighting.strategies import check_margins

MAX_STEPS = 200


@dataclass(frozen=True)
class PreferenceFit:
    """coefficients c [K] ≥ 0; loss: the mean negative log-likelihood at c, without the ridge; steps: Newton steps taken.

    weights c / Σ c [K] and scale Σ c: P(chosen ≻ rejected) = σ(scale · Σ_k weights_k m_k).
    With scale 0 (no margin helps) there are no best weights and `weights` is uniform.
    """

    coefficients: Tensor
    loss: float
    steps: int

    @property
    def scale(self) -> float:
        """s = Σ_k c_k: how sharply the pairs follow the mixture of margins."""
        return float(self.coefficients.sum())

    @property
    def weights(self) -> Tensor:
        """[K] on the simplex, w = c/s; uniform where s is 0."""
        return (
            self.coefficients / self.scale if self.scale > 0 else torch.full_like(self.coefficients, 1 / len(self.coefficients))
        )


def fit_preferences(margins: Tensor, *, counts: Tensor | None = None, ridge: float = 1e-2) -> PreferenceFit:
    r"""[K, P] → the fit of P(chosen ≻ rejected) = σ(Σ_k c_k m_k), c ≥ 0.

    minimise over c ≥ 0:   Σ_j n_j log(1 + exp(−Σ_k c_k m_kj)) + (ridge / 2) Σ_k (s_k c_k)²,     s_k² = the mean of m_k²

    In (scale, weights) the problem is not jointly convex; in c = scale · weights it is, and c → (Σ c,
    c / Σ c) is one to one for c ≠ 0, so the optimum over the simplex and the scale is found by solving for c. No intercept:
    exchanging chosen and rejected must exchange the probabilities. The ridge is worth ridge/P observations;
    it keeps the optimum finite and unique where margins separate the data or two references are the same.
    Solved by Newton steps on the free coefficients (projected onto c ≥ 0) until the optimality conditions hold.

    Args:
        margins: [K, P] float64 is best; log π_k(chosen) − log π_k(rejected).
        counts: [P] ≥ 0, how often each pair counts (for resampling); None: once.
        ridge: > 0.

    Raises:
        ArgumentError: margins that are not [K, P] and finite, counts that are not [P] and finite ≥ 0, a ridge that is not
            positive.

    Reference: DERIVED; logistic regression with a sign constraint; projected Newton: Bertsekas, 1982.
    """
    margins = check_margins(margins).double()
    if not ridge > 0:
        raise ArgumentError(f"ridge is {ridge}; expected a positive number.")
    counts = torch.ones_like(margins[0]) if counts is None else counts.double()
    if counts.shape != margins.shape[1:] or not bool(((counts >= 0) & counts.isfinite()).all()):
        raise ArgumentError(
            f"counts: found {tuple(counts.shape)} numbers, expected one ≥ 0 for each of {margins.shape[1]} pairs."
        )
    spread = margins.square().mean(-1).sqrt() if margins.shape[1] else margins.new_ones(len(margins))
    spread = torch.where(spread > 0, spread, torch.ones_like(spread))
    scaled = margins / spread[:, None]  # coefficients of order one, whatever the margins' unit
    c, steps = _solve(scaled, counts, ridge)
    total = float(counts.sum())
    loss = float(counts @ softplus(-(c @ scaled))) / total if total > 0 else 0.0
    return PreferenceFit(c / spread, loss, steps)


def _solve(x: Tensor, counts: Tensor, ridge: float) -> tuple[Tensor, int]:
    """Projected Newton: coefficients at (or next to) zero that want to go below it are held, the others take a Newton step."""
    c = x.new_zeros(len(x))
    value = _value(c, x, counts, ridge)
    tolerance = 1e-12 * max(1.0, float(counts.sum()))
    for step in range(MAX_STEPS):
        wrong = torch.sigmoid(-(c @ x)) * counts
        gradient = ridge * c - x @ wrong
        unmet = (c - (c - gradient).clamp_min(0)).abs()  # zero at the optimum, whichever coefficients are zero there
        if float(unmet.max()) <= tolerance:
            return c, step
        held = (c <= min(1e-3, float(unmet.max()))) & (gradient > 0)
        curvature = (x * (wrong * torch.sigmoid(c @ x))) @ x.T + ridge * torch.eye(len(x), dtype=x.dtype)
        curvature = torch.where(held[:, None] | held[None], torch.diag(curvature.diagonal()), curvature)
        following, lower = _search(c, -torch.linalg.solve(curvature, gradient), value, gradient, x, counts, ridge)
        if torch.equal(following, c):  # rounding is all that is left
            return c, step
        c, value = following, lower
    return c, MAX_STEPS


def _search(
    c: Tensor, direction: Tensor, value: float, gradient: Tensor, x: Tensor, counts: Tensor, ridge: float
) -> tuple[Tensor, float]:
    """Halve the step, projected onto c ≥ 0, until the value falls enough (Armijo, with room for the value's own rounding)."""
    length, rounding = 1.0, 1e-14 * abs(value)
    while length > 1e-9:
        trial = (c + length * direction).clamp_min(0)
        lower = _value(trial, x, counts, ridge)
        if lower <= value + 1e-4 * float(gradient @ (trial - c)) + rounding:
            return trial, lower
        length /= 2
    return c, value


def _value(c: Tensor, x: Tensor, counts: Tensor, ridge: float) -> float:
    return float(counts @ softplus(-(c @ x)) + ridge / 2 * c @ c)
