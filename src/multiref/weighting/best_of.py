"""The law of soft best-of-n: which of n weighted draws is picked, exactly, where what is drawn can be listed."""

import math

import torch
from torch import Tensor

from multiref.errors import ArgumentError

STEP = 0.2  # of log t; the trapezoid rule's error is of the order e^{−2π (π/2)/STEP}
REACH = 22.0  # e^{−22} of the integral lies before the first node


def best_of_law(log_proposal: Tensor, log_weights: Tensor, n: int) -> Tensor:
    r"""[M] log q, [M] log w → [M] log p_n: one of n draws of q, picked in proportion to w.

        p_n(y) = n q(y) w(y) ∫_0^∞ e^{−tw(y)} φ(t)^{n−1} dt,     φ(t) = E_q e^{−tw}

    q is on the simplex; where every draw weighs nothing there is no pick, and p_n is of the rest. Where a completion is reached
    in several ways with different weights, as with counted ends, the M are the ways, and p_n is summed over them.

    To first order p_n/π* = 1 + (1 + χ² − u)/n,  u = E[w²|y]/(E[w|y] Z): total variation falls as 1/n,
        KL(p_n‖π*) = Var_{π*}(u)/(2n²).

    Reference: docs/decoding.md (DERIVED).
    """
    q, w = log_proposal.double().exp(), log_weights.double()
    whole = isinstance(n, int) and n >= 1 and q.shape == w.shape and q.ndim == 1 and abs(float(q.sum()) - 1) <= 1e-6
    if not whole or not -math.inf < float(w.max()) < math.inf:
        raise ArgumentError(
            "best_of_law: expected a whole n ≥ 1, and log q (on the simplex) and log w (finite or −∞) of the same draws, some "
            "with mass."
        )
    w = (w - (log_proposal.double() + w).logsumexp(-1)).exp()  # its mean is 1
    first, last = -REACH - math.log(n), math.log(60.0 / float(w[(w > 0) & (q > 0)].min()))
    total = torch.zeros_like(w)
    for t in torch.arange(first, last, STEP, dtype=torch.float64).exp():  # dt = t d(log t)
        left = (-t * w).exp()
        total += t * left * (q @ left) ** (n - 1)
    law = (q * w * total).log()
    return law - law.logsumexp(-1)
