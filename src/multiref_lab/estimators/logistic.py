"""Maximum likelihood for linear rewards under Bradley–Terry: Newton's method on every data set at once."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from multiref.errors import ArgumentError
from multiref_lab.preferences import PairCounts

_STEPS = 60
_TOLERANCE = 1e-13
_FLAT = 1e-10  # least curvature per pair; separable data run away until there is none


@dataclass(frozen=True)
class LogisticFit:
    """Parameters [S, d], and which data sets have a finite maximum that was reached [S] (separable ones have none)."""

    theta: Tensor
    converged: Tensor


def logistic_mle(features: Tensor, counts: PairCounts, *, ridge: float = 0.0, start: Tensor | None = None) -> LogisticFit:
    r"""[X, Y, d] or [S, X, Y, d], counts [S, X, P] → argmax_θ Σ wins log σ(⟨θ, Δ⟩) + losses log σ(−⟨θ, Δ⟩) − (ridge/2)‖θ‖².

    Δ = φ(x, first) − φ(x, second). Newton steps, halved where the likelihood would fall; each data set stops on its own.

    Raises:
        ArgumentError: features whose differences do not span their d dimensions:
            the reward is then not identified (unless ridge > 0).
    """
    difference = (features[..., counts.first, :] - features[..., counts.second, :]).flatten(-3, -2).double()
    _check_span(difference, ridge)
    difference = difference.expand(len(counts.wins), -1, -1)  # [S, C, d]
    wins, losses = counts.wins.flatten(-2), counts.losses.flatten(-2)
    shown, seeds, dimension = wins + losses, wins.shape[0], features.shape[-1]
    total = shown.sum(-1, keepdim=True).clamp_min(1)
    theta = torch.zeros(seeds, dimension, dtype=torch.float64) if start is None else start.double().clone()
    eye = torch.eye(dimension, dtype=torch.float64)

    def margin_of(value: Tensor) -> Tensor:
        return torch.einsum("scd,sd->sc", difference, value)

    def loss_of(value: Tensor, margin: Tensor) -> Tensor:
        data = (shown * logsigmoid(margin) - losses * margin).sum(-1) / total[:, 0]
        return 0.5 * ridge * (value**2).sum(-1) / total[:, 0] - data

    margin = margin_of(theta)
    loss, converged = loss_of(theta, margin), torch.zeros(seeds, dtype=torch.bool)
    for _ in range(_STEPS):
        p = torch.sigmoid(margin)
        gradient = torch.einsum("scd,sc->sd", difference, (shown * p - wins) / total) + ridge * theta / total
        curved = difference * (shown * p * (1 - p) / total).unsqueeze(-1)
        hessian = torch.bmm(curved.mT, difference) + (ridge / total).unsqueeze(-1) * eye
        damping = 1e-14 * hessian.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-290)[:, None, None] * eye
        step = torch.linalg.solve(hessian + damping, gradient)
        decrement = (step * gradient).sum(-1)
        converged = decrement.abs() <= _TOLERANCE**2 * (1 + loss.abs())
        length = torch.ones(seeds, 1, dtype=torch.float64)
        for _ in range(30):
            proposal = theta - length * step
            new_margin = margin_of(proposal)
            worse = ~(loss_of(proposal, new_margin) <= loss + 1e-15 * (1 + loss.abs()))
            if not bool((worse & ~converged).any()):
                break
            length = torch.where(worse.unsqueeze(-1), 0.5 * length, length)
        accept = ~(converged | worse)
        theta = torch.where(accept.unsqueeze(-1), proposal, theta)
        margin = margin_of(theta)
        loss = loss_of(theta, margin)
        if bool((converged | worse).all()):
            break
    finite = (torch.linalg.eigvalsh(hessian)[:, 0] > _FLAT) | (ridge > 0)
    return LogisticFit(theta, (converged | worse) & finite)


def _check_span(difference: Tensor, ridge: float) -> None:
    rank, dimension = int(torch.linalg.matrix_rank(difference).min()), difference.shape[-1]
    if rank < dimension and ridge == 0:
        raise ArgumentError(
            f"features: found differences of rank {rank}, expected {dimension}; remove features that are constant across the "
            f"completions of a prompt or depend on others, or give ridge > 0"
        )
