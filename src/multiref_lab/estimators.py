"""Maximum likelihood from preference counts, thousands of fits on one tensor axis.

A finite class of rewards (the papers' setting) and linear rewards (batched Newton: damped steps on every data set at once).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from multiref.errors import ArgumentError
from multiref_lab.preferences import PairCounts

_CHUNK = 1 << 26  # doubles held at once
_STEPS = 60
_TOLERANCE = 1e-13
_FLAT = 1e-10  # least curvature per pair; separable data run away until there is none
_HALVINGS = 30


def finite_class_mle(candidates: Tensor, counts: PairCounts) -> Tensor:
    r"""[M, X, Y] (one class for all) or [S, M, X, Y] (one each), counts [S, X, P] → [S]: index of the likeliest candidate;
    ties go to the first.

    log L_m = Σ_{x,p} N log σ(D_m) − losses · D_m,     D_m = r_m(x, first_p) − r_m(x, second_p),  N = wins + losses
    """
    losses = counts.losses.flatten(-2)
    shown = counts.wins.flatten(-2) + losses
    difference = (candidates[..., counts.first] - candidates[..., counts.second]).flatten(-2).double()
    if candidates.ndim == 3:
        log_odds, slope = logsigmoid(difference).T.contiguous(), difference.T.contiguous()
        rows = max(1, _CHUNK // len(difference))
        return torch.cat([(n @ log_odds - l @ slope).argmax(-1) for n, l in zip(shown.split(rows), losses.split(rows))])
    likelihood = torch.einsum("smc,sc->sm", logsigmoid(difference), shown) - torch.einsum("smc,sc->sm", difference, losses)
    return likelihood.argmax(-1)


def likeliest(candidates: Tensor, counts: PairCounts) -> Tensor:
    """[S, M, X, Y] → [S, X, Y]: each data set's likeliest candidate."""
    return candidates[torch.arange(len(candidates)), finite_class_mle(candidates, counts)]


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


def damped_newton(
    objective: Callable[[Tensor], tuple[Tensor, Tensor]],
    derivatives: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    start: Tensor,
    *,
    steps: int,
    tolerance: float,
    rounding: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Damped Newton steps on many small convex problems at once; each stops on its own.

    [*R, d] → minimisers [*R, d], which of them were reached [*R], the last curvature [*R, d, d].

    Args:
        objective: θ → (loss [*R], what the derivatives need beside θ: the margins).
        derivatives: (θ, margins) → (gradient [*R, d], Hessian [*R, d, d]).
        tolerance: of the Newton decrement, relative.
        rounding: of the loss, relative: a step is halved where the loss would rise by more, and is the end where halving
            does not help.
    """
    theta, (loss, margin) = start, objective(start)
    for _ in range(steps):
        gradient, hessian = derivatives(theta, margin)
        step = torch.linalg.solve(hessian, gradient)
        stopped = (step * gradient).sum(-1).abs() <= tolerance**2 * (1 + loss.abs())
        if bool(stopped.all()):
            break
        length = torch.ones_like(loss)
        for _ in range(_HALVINGS):
            proposal = theta - length.unsqueeze(-1) * step
            new_loss, new_margin = objective(proposal)
            worse = ~(new_loss <= loss + rounding * (1 + loss.abs())) & ~stopped
            if not bool(worse.any()):
                break
            length = torch.where(worse, 0.5 * length, length)
        stopped = stopped | worse
        keep = stopped.unsqueeze(-1)
        theta, margin = torch.where(keep, theta, proposal), torch.where(keep, margin, new_margin)
        loss = torch.where(stopped, loss, new_loss)
        if bool(stopped.all()):
            break
    return theta, stopped, hessian
