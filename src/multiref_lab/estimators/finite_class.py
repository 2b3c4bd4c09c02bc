"""Maximum likelihood over a finite class of rewards."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from multiref_lab.preferences import PairCounts

_CHUNK = 1 << 26  # doubles held at once


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
