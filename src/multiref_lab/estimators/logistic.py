"""Maximum likelihood for linear rewards under Bradley–Terry: Newton's method on every data set at once."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from multiref.errors import ArgumentError
from multiref_lab.estimators.newton import damped_newton
from multiref_lab.preferences import PairCounts

_STEPS = 60
_TOLERANCE = 1e-13
_FLAT = 1e-10  # least curvature per pair; separable data run away until there is none


@dataclass(frozen=True)
class LogisticFit:
    """Parameters [S, d], and which data sets have a finite maximum that was reached [S] (separable ones have none)."""

    theta: Tensor
    converged: Tensor


def logistic_mle(
    features: Tensor | None,
    counts: PairCounts,
    *,
    ridge: float = 0.0,
    start: Tensor | None = None,
    differences: Tensor | None = None,
    kept: float = 1.0,
) -> LogisticFit:
    r"""[X, Y, d] or [S, X, Y, d], counts [S, X, P] → argmax_θ Σ wins log σ(⟨θ, Δ⟩) + losses log σ(−⟨θ, Δ⟩) − (ridge/2)‖θ‖².

    Δ = φ(x, first) − φ(x, second). Newton steps, halved where the likelihood would fall; each data set stops on its own.

    Args:
        differences: [X, P, d] or [S, X, P, d], Δ of each pair itself, where it is no difference of features (None).
        kept: the chance α that a label was kept, under randomised response; the likelihood is then of α σ + (1 − α) σ(−·)
            (Fisher scoring: not concave, so give a start where data are few).

    Raises:
        ArgumentError: features whose differences do not span their d dimensions:
            the reward is then not identified (unless ridge > 0).
    """
    if differences is None:
        assert features is not None
        differences = features[..., counts.first, :] - features[..., counts.second, :]
    difference = differences.flatten(-3, -2).double()
    _check_span(difference, ridge)
    difference = difference.expand(len(counts.wins), -1, -1)  # [S, C, d]
    wins, losses = counts.wins.flatten(-2), counts.losses.flatten(-2)
    shown, seeds, dimension = wins + losses, wins.shape[0], difference.shape[-1]
    total = shown.sum(-1, keepdim=True).clamp_min(1)
    eye = torch.eye(dimension, dtype=torch.float64)

    def objective(theta: Tensor) -> tuple[Tensor, Tensor]:
        margin = torch.einsum("scd,sd->sc", difference, theta)
        if kept == 1:
            data = (shown * logsigmoid(margin) - losses * margin).sum(-1) / total[:, 0]
        else:
            q = kept * torch.sigmoid(margin) + (1 - kept) * torch.sigmoid(-margin)
            data = (wins * q.log() + losses * (1 - q).log()).sum(-1) / total[:, 0]
        return 0.5 * ridge * (theta**2).sum(-1) / total[:, 0] - data, margin

    def derivatives(theta: Tensor, margin: Tensor) -> tuple[Tensor, Tensor]:
        p = torch.sigmoid(margin)
        q = kept * p + (1 - kept) * (1 - p)
        steep = (2 * kept - 1) * p * (1 - p) / (q * (1 - q)) if kept < 1 else torch.ones_like(p)
        gradient = torch.einsum("scd,sc->sd", difference, (shown * q - wins) * steep / total) + ridge * theta / total
        curved = difference * (shown * steep**2 * q * (1 - q) / total).unsqueeze(-1)
        hessian = torch.bmm(curved.mT, difference) + (ridge / total).unsqueeze(-1) * eye
        return gradient, hessian + 1e-14 * hessian.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-290)[:, None, None] * eye

    first = torch.zeros(seeds, dimension, dtype=torch.float64) if start is None else start.double()
    theta, reached, hessian = damped_newton(objective, derivatives, first, steps=_STEPS, tolerance=_TOLERANCE, rounding=1e-15)
    finite = (torch.linalg.eigvalsh(hessian)[:, 0] > _FLAT) | (ridge > 0)
    return LogisticFit(theta, reached & finite)


def _check_span(difference: Tensor, ridge: float) -> None:
    rank, dimension = int(torch.linalg.matrix_rank(difference).min()), difference.shape[-1]
    if rank < dimension and ridge == 0:
        raise ArgumentError(
            f"features: found differences of rank {rank}, expected {dimension}; remove features that are constant across the "
            f"completions of a prompt or depend on others, or give ridge > 0"
        )
