"""The law of soft best-of-n: which of n weighted draws is picked, exactly, where what is drawn can be listed."""

import math

import torch
from torch import Tensor

from multiref.errors import ArgumentError

STEP = 0.2  # of log t; the trapezoid rule's error is of the order e^{−2π (π/2)/STEP}
REACH = 36.0  # e^{−36} of an integral lies before its first node
LAST = math.log(60.0)  # and e^{−60} beyond its last one
BLOCK = 2**18  # numbers in an array [nodes, M] that is worked on at once


def best_of_law(log_proposal: Tensor, log_weights: Tensor, n: int) -> Tensor:
    r"""[M] log q, [M] log w → [M] log p_n: one of n draws of q, picked in proportion to w.

        p_n(y) = n q(y) w(y) ∫_0^∞ e^{−tw(y)} φ(t)^{n−1} dt,     φ(t) = E_q e^{−tw}

    q is on the simplex; where every draw weighs nothing there is no pick, and p_n is of the rest. Where a completion is reached
    in several ways with different weights, as with counted ends, the M are the ways, and p_n is summed over them.
    Exact to float64's digits however far the weights are apart: all of it is in logarithms.

    To first order p_n/π* = 1 + (1 + χ² − u)/n,  u = E[w²|y]/(E[w|y] Z): total variation falls as 1/n,
        KL(p_n‖π*) = Var_{π*}(u)/(2n²).

    Raises:
        ArgumentError: an n that is no whole number of at least 1, a q off the simplex, weights of which none has mass or one is
            infinite or NaN.

    Reference: docs/decoding.md (DERIVED).
    """
    log_q, log_w = log_proposal.double(), log_weights.double()
    whole = isinstance(n, int) and n >= 1 and log_q.shape == log_w.shape and log_q.ndim == 1
    whole = whole and abs(float(log_q.exp().sum()) - 1) <= 1e-6 and float(log_w.max()) < math.inf
    drawn = log_w[log_q > -math.inf] if whole else log_w
    if not whole or not float(drawn.max()) > -math.inf:
        raise ArgumentError(
            "best_of_law: expected a whole n ≥ 1, and log q (on the simplex) and log w (finite or −∞) of the same draws, some "
            "with mass."
        )
    total = torch.full_like(log_w, -math.inf)
    for log_t in _nodes(drawn[drawn > -math.inf], n)[:, None].split(max(1, BLOCK // len(log_w))):
        scaled = (log_t + log_w).exp()  # t w
        log_phi = (log_q - scaled).logsumexp(-1, keepdim=True)
        here = log_t + log_w - scaled + (n - 1) * log_phi  # dt = t d(log t)
        total = torch.logaddexp(total, here.logsumexp(0))
    law = log_q + total
    return law - law.logsumexp(-1)


def _nodes(log_w: Tensor, n: int) -> Tensor:
    """Multiples of STEP around the places −log w where e^{−tw} falls; between them every integrand is as good as constant in t,
    and none has mass to speak of."""
    places = (-log_w).sort().values
    first, last = ((places - REACH - math.log(n)) / STEP).floor(), ((places + LAST) / STEP).ceil()
    starts = torch.cat((torch.ones(1, dtype=torch.bool), first[1:] > last[:-1]))
    ends = torch.cat((starts[1:], torch.ones(1, dtype=torch.bool)))
    spans = zip(first[starts].tolist(), last[ends].tolist())
    return STEP * torch.cat([torch.arange(low, high + 1, dtype=torch.float64) for low, high in spans])
