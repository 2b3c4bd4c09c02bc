"""Clipped log-ratios, two rules that are easily taken for one: a clip in the reward, and the gradient of a clipped objective.

    ℓ = log π/P,   c(ℓ) = min(max(ℓ, −τ), τ),   P the pool of whole completions, not normalised

Both are reverse KL where nothing is clipped. `ClipReward` pays r − β c(ℓ), without gradient. `ClipObjective` follows the
gradient of E_π[r − β c(ℓ)], whose score is c + c'.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from multiref._logspace import NEG_INF, expectation, log_ratio
from multiref.errors import ArgumentError
from multiref.regularizers import PooledKL, Regularizer, ReverseKL
from multiref.training.online.backward_induction import Levels, conditionals, sequence_logps
from multiref.training.online.penalty import Penalty, Samples

_STEPS = 200


@dataclass(frozen=True)
class Clip(Penalty):
    """Abstract.

    Args:
        tau: τ > 0, nats of a completion.
        reward_range: R, largest less least reward; disagreement: an upper bound of −log F, one number or one for each prompt.
            With both, τ is safe if it is at least `margin` + R/β − log F: then the optimum is that without a clip.
        biased: take a τ that is not known to be safe.

    Raises:
        ArgumentError: τ ≤ 0; and, when the strength is known (`check_strength`), a τ that is not known to be safe.
    """

    tau: float
    reward_range: float | None = None
    disagreement: float | Sequence[float] | None = None
    biased: bool = False  # `exact` is then False: the optimum may be another one

    needs: ClassVar[str] = "completions"
    margin: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.tau < float("inf"):
            raise ArgumentError(f"tau: expected a positive, finite number of nats, found {self.tau!r}.")
        object.__setattr__(self, "exact", not self.biased)
        for name, value in (("reward_range", self.reward_range), ("disagreement", self._price)):
            if value is not None and not 0 <= value < float("inf"):
                raise ArgumentError(f"{name}: expected a finite number of at least 0, found {value!r}.")

    @property
    def _price(self) -> float | None:
        """The largest −log F of a prompt."""
        given = self.disagreement
        return None if given is None else max(map(float, [given] if isinstance(given, int | float) else given))

    def check(self, regularizer: Regularizer) -> None:
        if not isinstance(regularizer, ReverseKL | PooledKL):
            raise ArgumentError(f"{type(self).__name__}: expected ReverseKL or PooledKL, found {regularizer!r}.")

    def check_strength(self, beta: float, *, moves: bool = False) -> None:
        """ArgumentError for a τ that is not known to leave the optimum alone at this β, unless `biased`; nor at one that moves,
        for a smaller one needs a larger τ."""
        if self.biased:
            return
        name = type(self).__name__
        if moves:
            raise ArgumentError(f"adaptive_beta: {name}'s τ is safe at one β, not where it may move to; give biased=True.")
        if self.reward_range is None or self._price is None:
            raise ArgumentError(
                f"{name}: whether τ = {self.tau:g} moves the optimum is not known without reward_range and disagreement (an "
                "upper bound of −log F, as the certificate of decoding gives it). Give both, or biased=True."
            )
        least = self.margin + self.reward_range / beta + self._price
        if self.tau < least:
            raise ArgumentError(
                f"{name}: τ = {self.tau:g} may move the optimum; at β = {beta:g} it is safe from {least:.4g} on "
                f"({self.margin:g} + R/β − log F). Raise it, or give biased=True."
            )

    def log_ratios(self, samples: Samples, regularizer: Regularizer) -> Tensor:
        """[N]: ℓ of whole completions, without gradient."""
        regularizer = regularizer if samples.weights is None else regularizer.with_weights(samples.weights)
        return samples.logps.detach() - regularizer.pool(samples.ref_logps.double())

    def figures(self, samples: Samples, regularizer: Regularizer) -> dict[str, Tensor]:
        """`clipped`: the share of completions with |ℓ| > τ."""
        return {"clipped": (self.log_ratios(samples, regularizer).abs() > self.tau).double()}


@dataclass(frozen=True)
class ClipReward(Clip):
    """c(ℓ) in the reward, no gradient through it. π* stays the fixed point while every |ℓ*| ≤ τ.

    Where the best completion's ℓ* is above τ nothing holds it back: it takes what mass the others, at r − β ℓ = λ = r_max − βτ,
    leave. Below −τ nothing holds a completion up: it goes to zero.

    Reference: DERIVED (docs/theory.md 12); the clip as in arXiv 2602.21765.
    """

    optimum = "P · e^{r/β} while every |log π*/P| ≤ τ; else the best completion takes what the clipped ones leave"

    def reward_terms(self, samples: Samples, regularizer: Regularizer) -> Tensor:
        return self.log_ratios(samples, regularizer).clamp(-self.tau, self.tau)

    def fixed_point(self, reward: Tensor, ref_levels: Levels, regularizer: Regularizer, *, beta: float) -> list[Tensor]:
        log_pool = regularizer.pool(sequence_logps(ref_levels))
        return conditionals(_reward_clipped(reward, log_pool, beta, self.tau), ref_levels[0].shape[-1])


@dataclass(frozen=True)
class ClipObjective(Clip):
    """The gradient of E_π[r − β c(ℓ)]: (c + c')(ℓ) in the reward, c' = 1 where |ℓ| < τ, else 0.

    As an objective a clip changes the optimum where it binds: beyond τ more mass costs no more, so for τ < max ℓ* all mass on
    the best completion beats π*. For τ ≥ 1 + max ℓ* (and −min ℓ* ≤ τ) π* stays: Σ_A π log(π*/π) ≤ π(Aᶜ), A = {ℓ ≤ τ}.
    The reported clipped objective is then the same, and its gradient exact; with `ClipReward`'s it would not be.

    Reference: arXiv 2602.21765 for the objective (FOUND); what it does DERIVED (docs/theory.md 12).
    """

    margin: ClassVar[float] = 1.0
    optimum = "P · e^{r/β} for τ ≥ 1 + max |log π*/P|; below max log π*/P near all mass on the best completion"

    def reward_terms(self, samples: Samples, regularizer: Regularizer) -> Tensor:
        ratio = self.log_ratios(samples, regularizer)
        return ratio.clamp(-self.tau, self.tau) + (ratio.abs() < self.tau)

    def fixed_point(self, reward: Tensor, ref_levels: Levels, regularizer: Regularizer, *, beta: float) -> list[Tensor]:
        """The maximiser; it is a fixed point, of several where the clip binds (any point mass is one)."""
        log_pool = regularizer.pool(sequence_logps(ref_levels))
        return conditionals(_objective_clipped(reward, log_pool, beta, self.tau), ref_levels[0].shape[-1])


def clipped_objective(log_policy: Tensor, reward: Tensor, log_pool: Tensor, *, beta: float, tau: float) -> Tensor:
    """[*B, Y] three times → [*B]: E_π[r − β c(log π/P)], exactly."""
    ratio = log_ratio(log_policy, log_pool, under=log_policy)
    return expectation(log_policy, reward - beta * ratio.clamp(-tau, tau))


Mass = Callable[[Tensor], Tensor]  # λ [*B, 1] → masses [*B, Y]


def _root(mass: Mass, low: Tensor, high: Tensor) -> Tensor:
    """λ [*B, 1] at which a falling mass crosses one, from above."""
    for _ in range(_STEPS):
        middle = 0.5 * (low + high)
        more = mass(middle).sum(-1, keepdim=True) > 1
        low, high = torch.where(more, middle, low), torch.where(more, high, middle)
    return high


def _unclipped(reward: Tensor, log_pool: Tensor, beta: float, tau: float, margin: float) -> Mass:
    """Masses of completions that are not clipped above: P e^{(r − λ)/β − margin}, at least P e^{−τ} while r + βτ ≥ λ where
    `margin` is 1, and zero below."""

    def mass(multiplier: Tensor) -> Tensor:
        pull = (reward - multiplier) / beta
        ratio = (pull - margin).clamp_min(-tau)
        return torch.where((pull >= -tau) & (log_pool > NEG_INF), (log_pool + ratio).exp(), 0.0)

    return mass


def _solved(reward: Tensor, log_pool: Tensor, beta: float, tau: float, margin: float) -> tuple[Tensor, Mass, Tensor, Tensor]:
    """log P with the veto of a reward of −inf; masses that are not clipped above; λ [*B, 1] at which they sum to one; the best
    reward [*B, 1] that has mass."""
    log_pool = torch.where(reward > NEG_INF, log_pool, NEG_INF)
    mass, alive, far = _unclipped(reward, log_pool, beta, tau, margin), log_pool > NEG_INF, beta * (tau + 2)
    best = torch.where(alive, reward, NEG_INF).amax(-1, keepdim=True)
    least = torch.where(alive, reward, torch.inf).amin(-1, keepdim=True)
    at = beta * torch.logsumexp(log_pool + reward / beta, -1, keepdim=True)
    return log_pool, mass, _root(mass, torch.minimum(least, at) - far, torch.maximum(best, at) + far), best


def _reward_clipped(reward: Tensor, log_pool: Tensor, beta: float, tau: float) -> Tensor:
    log_pool, mass, root, best = _solved(reward, log_pool, beta, tau, 0.0)
    alive = log_pool > NEG_INF
    floor = torch.maximum(root, best - beta * tau)  # above it the best completion would be clipped, and grow
    policy = mass(floor)
    left = (1 - policy.sum(-1, keepdim=True)).clamp_min(0)
    top = alive & (reward == best)
    edge = alive & ((reward - floor + beta * tau).abs() <= 1e-9 * (1 + floor.abs())) & (policy == 0)
    takes = torch.where(root < best - beta * tau, top, torch.where(edge.any(-1, keepdim=True), edge, top)).double()
    policy = policy + left * takes / takes.sum(-1, keepdim=True)
    return (policy / policy.sum(-1, keepdim=True)).log()


def _objective_clipped(reward: Tensor, log_pool: Tensor, beta: float, tau: float) -> Tensor:
    """The best of: nothing above τ; and, for each completion b that can be, b above τ with λ = r_b − βτ and what the others
    leave."""
    log_pool, mass, root, _ = _solved(reward, log_pool, beta, tau, 1.0)
    alive, plain = log_pool > NEG_INF, mass(root)
    candidates = [plain / plain.sum(-1, keepdim=True)]
    for b in range(reward.shape[-1]):
        others = mass(reward[..., b : b + 1] - beta * tau)
        others[..., b] = 0.0
        left = 1 - others.sum(-1)
        allowed = alive[..., b] & (left >= (log_pool[..., b] + tau).exp())
        others[..., b] = left
        candidates.append(torch.where(allowed[..., None], others, candidates[0]))
    policies = torch.stack(candidates).log()
    values = clipped_objective(policies, reward, log_pool, beta=beta, tau=tau)
    place = values.argmax(0)
    return policies.gather(0, place[None, ..., None].expand(1, *reward.shape))[0]
