"""The multiplier of the α-family: one root per row, found for all rows at once.

With a = α − 1, rewards measured downwards from the best one in units of β (gap g_y = (r_max − r_y)/β ≥ 0), c =
(r_max − λ)/β and the pool P of mass one (`normalise` gets there: a mass M stretches β to β M^{−a}),

    π*(y) = P(y) b_y^{1/a},   b_y = 1 + a (c − g_y),        h(c) = log Σ_y P(y) (b_y)_+^{1/a} = 0,        h increasing.

Newton's method is applied to G = e^{a h}, a power mean of numbers linear in c:
concave for a < 0, convex for 0 < a ≤ 1, so from the upper end of the bracket it walks to the root without overshooting;
a bisection in log b takes over where it is slow (and for a > 1).

Two unknowns, for digits: the top base b = 1 + a c itself away from α = 1 (the distance of λ from its pole, in units of β/|a|),
c near it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

EPS = torch.finfo(torch.float64).eps
RESOLUTION = 16 * EPS
NEAR_REVERSE_KL = 4e-3  # |α − 1| below which c is the unknown: b loses eps/|α − 1|, c loses eps · P^{−|α − 1|}/|α − 1|
MAX_STEPS = 200
LARGEST = 600.0  # e^600 is far from overflow, and nothing but the best reward counts beyond it


class Family(NamedTuple):
    """a = α − 1 and which unknown is used: `near` means x = c, else x = b = 1 + a c."""

    a: float
    near: bool

    @staticmethod
    def of(alpha: float) -> "Family":
        return Family(alpha - 1, abs(alpha - 1) < NEAR_REVERSE_KL)

    def log_base(self, x: Tensor, gap: Tensor) -> Tensor:
        """log (b_y)_+ at the unknown x, −inf where the base is not positive."""
        if self.near:
            return torch.log1p((self.a * (x - gap)).clamp_min(-1.0))
        return (x - self.a * gap).clamp_min(0.0).log()

    def from_c(self, c: Tensor) -> Tensor:
        """The unknown from c = (r_max − λ)/β."""
        return c if self.near else 1 + self.a * c

    def to_c(self, x: Tensor, log_mass: Tensor) -> Tensor:
        """c of the problem as it was before `normalise`; exact enough for λ, not for the policy."""
        stretch = (-self.a * log_mass).clamp(-LARGEST, LARGEST)
        return (x * stretch.exp() + torch.expm1(stretch) / self.a) if self.near else (x * stretch.exp() - 1) / self.a

    def rounding(self, x: Tensor) -> Tensor:
        """The size of the rounding errors in h: those of the largest logarithm that enters it."""
        return 4 * EPS * (1 + (x.abs() if self.near else x.log().abs() / abs(self.a)))

    def from_log_mass(self, log_mass: Tensor) -> Tensor:
        """The unknown at which a completion of that pooled mass, with the best reward, takes all: b = P^{−a}."""
        return torch.expm1(-self.a * log_mass) / self.a if self.near else torch.exp(-self.a * log_mass)


def normalise(log_pool: Tensor, gap: Tensor, a: float) -> tuple[Tensor, Tensor, Tensor]:
    """[R, Y], [R, Y] → the same problem with a pool of mass one, and log M [R]:
    Σ P b^{1/a} = 1 with b = M^{−a} b' is Σ (P/M) b'^{1/a} = 1."""
    log_mass = torch.logsumexp(log_pool, -1, keepdim=True)
    return log_pool - log_mass, gap * (a * log_mass).clamp(-LARGEST, LARGEST).exp(), log_mass[:, 0]


def log_mass_and_slope(x: Tensor, log_pool: Tensor, gap: Tensor, family: Family) -> tuple[Tensor, Tensor]:
    """[R], [R, Y], [R, Y] → h [R] and dh/dc = Σ_y π_y / b_y [R], π normalised."""
    log_base = family.log_base(x[:, None], gap)
    terms = log_pool + log_base / family.a
    top = terms.amax(-1, keepdim=True)
    mass = (terms - top).exp_()
    total = mass.sum(-1)
    # a truncated base (α > 1) has mass zero and is not to be divided by
    slope = (mass / log_base.exp_() if family.a < 0 else torch.where(mass > 0, mass * (-log_base).exp_(), 0.0)).sum(-1) / total
    return top[:, 0] + total.log(), slope


def bracket(log_pool: Tensor, gap: Tensor, family: Family) -> tuple[Tensor, Tensor, Tensor]:
    """Lower and upper end of the root in the unknown, and the end that corresponds to the largest c, where Newton starts.

    P has mass one, so c ≥ 0 (all gaps zero). No completion has more mass than one: c ≤ c(P_y) + g_y for every y.
    Jensen (α ≤ 2): c ≤ E_P[g].
    """
    pick = torch.amax if _falling(family) else torch.amin
    reach = family.from_log_mass(log_pool) + (gap if family.near else family.a * gap)
    most_c = pick(torch.where(log_pool > -torch.inf, reach, -torch.inf if _falling(family) else torch.inf), -1)
    if family.a <= 1:
        shifted = family.from_c((log_pool.exp() * gap).sum(-1))
        most_c = torch.maximum(most_c, shifted) if _falling(family) else torch.minimum(most_c, shifted)
    least_c = torch.full_like(most_c, 0.0 if family.near else 1.0)
    return (most_c, least_c, most_c) if _falling(family) else (least_c, most_c, most_c)


def _falling(family: Family) -> bool:
    """Whether the unknown falls as c rises (b does for α < 1)."""
    return family.a < 0 and not family.near


def find_root(log_pool: Tensor, gap: Tensor, alpha: float) -> Tensor:
    """[R, Y] log-masses of total mass one and gaps (0 where the mass is −inf) → [R]:
    the unknown x of `Family.of(alpha)` at which the policy has mass one."""
    family = Family.of(alpha)
    sign = -1.0 if _falling(family) else 1.0
    low, high, start = bracket(log_pool, gap, family)
    solution, rows, x = start.clone(), torch.arange(len(start), device=start.device), start.clone()
    last_step = torch.full_like(x, torch.inf)
    for _ in range(MAX_STEPS):
        h, slope = log_mass_and_slope(x, log_pool, gap, family)
        low, high = torch.where(sign * h > 0, low, x), torch.where(sign * h > 0, x, high)
        step = torch.expm1((-family.a * h).clamp_max(600.0)) / slope
        proposal = x + (step / family.a if family.near else step)
        done = (h.abs() <= family.rounding(x)) | (torch.minimum((proposal - x).abs(), high - low) <= RESOLUTION * x.abs())
        solution[rows] = torch.where(h.abs() <= family.rounding(x), x, proposal.clamp(low, high))
        if bool(done.all()):
            break
        x, last_step = _next(x, proposal, low, high, last_step, family)
        if int((~done).sum()) < 0.7 * len(done):
            keep = ~done
            rows, x, low, high, last_step = (t[keep] for t in (rows, x, low, high, last_step))
            log_pool, gap = log_pool[keep], gap[keep]
    return solution


def _next(x: Tensor, proposal: Tensor, low: Tensor, high: Tensor, last_step: Tensor, family: Family) -> tuple[Tensor, Tensor]:
    """Newton's proposal within the bracket, unless it does not halve the last step (in log b):
    then the middle of the bracket."""
    proposal = proposal.clamp(low, high)
    if family.near:
        step, middle = (proposal - x).abs(), 0.5 * (low + high)
    else:
        step, middle = (proposal / x).log().abs(), (low.log() + high.log()).mul(0.5).exp()
    bad = step > 0.5 * last_step
    return torch.where(bad, middle, proposal), torch.where(bad, torch.inf, step)
