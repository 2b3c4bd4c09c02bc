"""The regularised objective under K references and its optimum, exactly; optima under single references merged into it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from multiref._logspace import NEG_INF, Weights, align, check_beta, check_logps, expectation, prompt_weights
from multiref.errors import ArgumentError
from multiref.exact._nested import solve_nested
from multiref.exact._problem import check_mass, check_policy_shape, check_reward, check_shapes
from multiref.exact._root import EPS, LARGEST, Family, find_root, normalise
from multiref.pools import power_pool
from multiref.regularizers import FDivergence, Regularizer

BLOCK = 2**17  # numbers in an array [rows, Y] whose roots are found at once: its temporaries stay in the cache
NO_MASS = 600.0  # a mass P^|α−1| below e^−600 of the largest is outside the support for the root, so that no base underflows


@dataclass(frozen=True)
class Solution:
    """The optimum, per prompt.

    Attributes:
        log_policy: [*B, Y], log π*; −inf where the optimum has no mass.
        value: [*B], J(π*), in units of the reward.
        multiplier: [*B], λ of r − β f'(π*/P) = λ: β log Σ P_0 e^{r/β} for reverse KL; Z = λ + β of the papers for forward KL.
        log_partition: [*B], log Σ_y P e^{r/β} = log F + log Z of the papers; None but for reverse KL and PooledKL.
    """

    log_policy: Tensor
    value: Tensor
    multiplier: Tensor
    log_partition: Tensor | None = None

    @property
    def policy(self) -> Tensor:
        """[*B, Y], π*."""
        return self.log_policy.exp()

    def __str__(self) -> str:
        n, mean = self.value.numel(), float(self.value.double().mean())
        support = float((self.log_policy > NEG_INF).sum(-1).double().mean())
        return (
            f"Solution over {tuple(self.log_policy.shape)}: mean value {mean:.6g} over {n} prompt{'s' if n != 1 else ''}, "
            f"support {support:.1f} completions, best {float(self.log_policy.detach().amax().exp()):.4g}"
        )


def solve(reward: Tensor, ref_logps: Tensor, regularizer: Regularizer, *, beta: float = 0.1) -> Solution:
    r"""[*B, Y], [K, *B, Y] → the policy that maximises E_π[r] − β Σ_k w_k D(π‖π_k), prompt by prompt.

        r(y) − β f'(π*(y)/P(y)) = λ      for every y with π*(y) > 0

    Reverse KL and PooledKL in closed form, π* ∝ P e^{r/β}; the α-family by a root per row (`_root`), truncated for α > 1,
    and for α < 1 with the corner λ = max r − β/(1 − α) where a reward outside every reference's support is worth its price:
    the left-over mass sits there, split evenly among ties. `FDivergence`, which has no pool, by two nested roots (`_nested`).

    Ragged supports are padded with reward −inf and log-probability −inf. Differentiable in reward, ref_logps and weights
    (implicit function theorem).
    Exact means float64: pass float64.

    Args:
        reward: [*B, Y].
        ref_logps: [K, *B, Y], log-probabilities of each reference over the same completions.
        regularizer: `ReverseKL`, `ForwardKL`, `AlphaDivergence`, `PooledKL` or `FDivergence`, with its weights.
        beta: strength β > 0, in units of the reward.

    Raises:
        ArgumentError: NaN, +inf, log-probabilities above zero, shapes that do not match, β ≤ 0.
            An α so far from 1 that powers of the references overflow.
        EmptyPoolError: rows in which the pool has no mass, named.

    Reference: arXiv 2502.01203, Theorems 5.1 and 6.1 (FOUND); the α-family, truncation and corner are DERIVED
    (docs/theory.md 3).

    >>> import multiref as mr
    >>> refs = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]]).double().log()
    >>> mr.exact.solve(torch.tensor([0.0, 1.0, 0.0]).double(), refs, mr.ReverseKL(), beta=1.0).policy
    tensor([0.2466, 0.5068, 0.2466], dtype=torch.float64)
    """
    check_beta(beta)
    shape = check_shapes(check_reward(reward), check_logps(ref_logps, "ref_logps"))
    ref_logps = align(ref_logps, len(shape))
    prompt_weights(regularizer.weights, ref_logps)
    if isinstance(regularizer, FDivergence):
        log_policy, multiplier = solve_nested(reward.expand(shape), ref_logps, regularizer, beta)
        received = expectation(log_policy, torch.where(log_policy == NEG_INF, 0.0, reward))
        return Solution(log_policy, received - beta * regularizer.penalty(log_policy, ref_logps), multiplier)
    log_pool = regularizer.pool(ref_logps).expand(shape)
    reward = reward.expand(shape)
    check_mass(log_pool, reward, regularizer.name)
    if regularizer.alpha == 1:
        return _tilted(reward, log_pool, beta)
    flat = [each.reshape(-1, shape[-1]).split(max(1, BLOCK // shape[-1])) for each in (reward, log_pool)]
    parts = [_by_root(*block, alpha=regularizer.alpha, beta=beta) for block in zip(*flat)]
    log_policy, multiplier = (torch.cat(each) for each in zip(*parts))
    if bool(log_policy.isnan().any()):
        alpha, kind = regularizer.alpha, str(log_policy.dtype).removeprefix("torch.")
        raise ArgumentError(
            f"alpha: found {alpha:g}, at which powers of these references leave {kind}; expected one nearer to 1."
        )
    log_policy = log_policy.reshape(shape)
    received = expectation(log_policy, torch.where(log_policy == NEG_INF, 0.0, reward))
    penalty = regularizer.penalty_given_pool(log_policy, log_pool, ref_logps)
    return Solution(log_policy, received - beta * penalty, multiplier.reshape(shape[:-1]))


def value(log_policy: Tensor, reward: Tensor, ref_logps: Tensor, regularizer: Regularizer, *, beta: float = 0.1) -> Tensor:
    r"""[*B, Y], [*B, Y], [K, *B, Y] → [*B]: the objective at a policy, per prompt, in units of the reward.

        J(π) = E_π[r] − β Σ_k w_k D(π‖π_k)

    For reverse KL, J* − J(π) = β KL(π‖π*), whatever π is (docs/theory.md 1 a).

    Raises:
        ArgumentError: NaN or +inf rewards, log-probabilities above zero, shapes that do not match, β ≤ 0.
    """
    check_beta(beta)
    check_logps(log_policy, "log_policy")
    shape = check_shapes(check_reward(reward), check_logps(ref_logps, "ref_logps"))
    check_policy_shape(log_policy, shape)
    return expectation(log_policy, reward) - beta * regularizer.penalty(log_policy, align(ref_logps, len(shape)))


def merge(log_policies: Tensor, weights: Weights = None) -> Tensor:
    r"""[K, *B, Y] → [*B, Y]: log π*_w from log π*_k ∝ π_k e^{r/β}, the optima under each reference alone (same r, same β).

        π*_w ∝ Π_k (π*_k)^{w_k}

    Holds for reverse KL and whole completions only: merging per token optimises another objective (docs/theory.md 5).

    Raises:
        EmptyPoolError: rows in which no completion has mass under every weighted policy.

    Reference: DERIVED (docs/theory.md 1 c).
    """
    prompt_weights(weights, log_policies)
    pooled = power_pool(log_policies, weights, order=0.0)
    check_mass(pooled, torch.zeros_like(pooled), "merge")
    return pooled.log_softmax(-1)


def _tilted(reward: Tensor, log_pool: Tensor, beta: float) -> Solution:
    """α = 1: π* = P e^{r/β} / Σ P e^{r/β}, with rewards measured from the best one that has mass."""
    best = torch.where(log_pool == NEG_INF, NEG_INF, reward).detach().amax(-1, keepdim=True)
    tilted = log_pool + (reward - best) / beta
    log_mass = torch.logsumexp(tilted, -1, keepdim=True)
    multiplier = (best + beta * log_mass)[..., 0]
    return Solution(tilted - log_mass, multiplier, multiplier, multiplier / beta)


def _by_root(reward: Tensor, log_pool: Tensor, *, alpha: float, beta: float) -> tuple[Tensor, Tensor]:
    """[R, Y], [R, Y] → log π* [R, Y] and λ [R] for α ≠ 1."""
    family = Family.of(alpha)
    allowed = (log_pool > NEG_INF) & (reward > NEG_INF)
    inside = allowed & (log_pool > torch.where(allowed, log_pool, NEG_INF).amax(-1, keepdim=True) - NO_MASS / abs(family.a))
    best = torch.where(inside, reward, NEG_INF).amax(-1, keepdim=True)
    gap = torch.where(allowed, (best - reward) / beta, 0.0)
    masked_pool, masked_gap, log_mass = normalise(
        torch.where(inside, log_pool, NEG_INF), torch.where(inside, gap, 0.0), family.a
    )
    with torch.no_grad():
        x = find_root(masked_pool.detach().double(), masked_gap.detach().double(), alpha)
    x = _attached(x, masked_pool, masked_gap, family)
    stretch, leftover = (family.a * log_mass).clamp(-LARGEST, LARGEST).exp(), None
    if alpha < 1:
        outside = torch.where(inside, NEG_INF, reward)
        x, leftover = _corner(x, outside, best, masked_pool, masked_gap, stretch, family, beta)
    log_base = family.log_base(x[:, None], gap * stretch[:, None])
    positive = allowed & (log_base.detach() > NEG_INF)
    log_policy = torch.where(positive, log_pool - log_mass[:, None], NEG_INF) + torch.where(positive, log_base, 0.0) / family.a
    if leftover is not None:
        log_policy = torch.where(leftover > NEG_INF, leftover, log_policy)
    if alpha > 1 and not family.near:
        base = (x[:, None] - family.a * gap * stretch[:, None]).detach()
        log_policy = _at_the_kink(log_policy, base, torch.where(allowed, log_pool - log_mass[:, None], NEG_INF), family.a)
    # the root leaves a mass of 1 ± (rounding of x − a·g): what it is short of, the value would be off by to first order
    return log_policy - torch.logsumexp(log_policy, -1, keepdim=True), best[:, 0] - beta * family.to_c(x, log_mass)


def _attached(x: Tensor, log_pool: Tensor, gap: Tensor, family: Family) -> Tensor:
    """The root with its derivatives: a Newton step at the root changes nothing but the graph (twice:
    second derivatives too)."""
    if not (torch.is_grad_enabled() and (log_pool.requires_grad or gap.requires_grad)):
        return x.to(log_pool.dtype)
    x = x.to(log_pool.dtype)
    for _ in range(2):
        log_base = family.log_base(x[:, None], gap)
        alive = (log_pool > NEG_INF) & (log_base > NEG_INF)
        safe = torch.where(alive, log_base, 0.0)
        terms = torch.where(alive, log_pool, NEG_INF) + safe / family.a
        h, p = torch.logsumexp(terms, -1), terms.softmax(-1)
        step = torch.expm1(-family.a * h) / (p * (-safe).exp()).sum(-1)
        x = x + (step - step.detach()) / (family.a if family.near else 1.0)
    return x


def _at_the_kink(log_policy: Tensor, base: Tensor, log_pool: Tensor, a: float) -> Tensor:
    """α > 1: next to its kink a completion's mass P b^{1/a} turns on digits of b that are not there (at a = 40, b = 1e-16 is
    mass 0.4 P). There it takes what the others leave."""
    size = torch.where(log_pool > NEG_INF, base.abs(), torch.inf)
    least, top = size.amin(-1, keepdim=True), base.amax(-1, keepdim=True)
    kink = (size == least) & (log_pool > NEG_INF)
    own = torch.where(kink, log_pool, NEG_INF).logsumexp(-1, keepdim=True)
    steep = a * least < (own + least.clamp_min(EPS * top).log() / a).exp() * top
    left = 1 - torch.where(kink, NEG_INF, log_policy).logsumexp(-1, keepdim=True).exp()
    share = torch.where(left > 8 * EPS, left.clamp_min(EPS).log() + log_pool - own, NEG_INF)
    return torch.where(kink & steep, share, log_policy)


def _corner(
    x: Tensor, outside: Tensor, best: Tensor, log_pool: Tensor, gap: Tensor, stretch: Tensor, family: Family, beta: float
) -> tuple[Tensor, Tensor | None]:
    """α < 1: λ may not fall below max r − β/(1 − α) over *all* completions; what mass is then left sits on the best reward
    `outside` the support."""
    best_outside = outside.amax(-1, keepdim=True)
    any_outside = (best_outside > NEG_INF)[:, 0]
    above = (torch.where(any_outside[:, None], best_outside, best) - best)[:, 0]
    pole = -family.a * stretch * above / beta  # the top base at which the outside completion's own base is zero
    floor = (pole - 1) / family.a if family.near else pole
    binds = (x.detach() > floor.detach()) if family.near else (x.detach() < floor.detach())
    binds &= any_outside
    if not bool(binds.any()):
        return x, None
    x = torch.where(binds, floor, x)
    log_base = family.log_base(torch.where(binds, floor, 1.0)[:, None], gap)
    inside_mass = torch.logsumexp(log_pool + torch.where(log_pool > NEG_INF, log_base, 0.0) / family.a, -1).exp()
    ties = (outside == best_outside) & binds[:, None]
    share = torch.where(binds, 1 - inside_mass, 1.0)[:, None] / ties.sum(-1, keepdim=True).clamp_min(1)
    return x, torch.where(ties, share.clamp_min(torch.finfo(share.dtype).tiny).log(), NEG_INF)
