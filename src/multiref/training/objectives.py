"""Objectives: what preference training minimises, as small values. Arrays in, one loss per pair out; no model, no file.

Axes: `B` pairs, then the two sides of a pair (0 chosen, 1 rejected); references first, `K`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from multiref import losses as preference_losses
from multiref.divergences import log_ratios
from multiref.errors import ArgumentError
from multiref.regularizers import FDivergence, Regularizer, Weights, check_beta

__all__ = ["Loss", "MultiDPO", "Objective", "PairLogps", "Preference", "Weights"]

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class PairLogps:
    """What an objective knows of B pairs: log-probabilities of whole completions (nats), and how many tokens each has.

    Args:
        policy: [B, 2] under the policy; carries the gradient.
        references: [K, B, 2] under the frozen references.
        lengths: [B, 2] tokens in the policy's tokenizer.
        ref_lengths: [K, B, 2] tokens in each reference's own.
    """

    policy: Tensor
    references: Tensor
    lengths: Tensor
    ref_lengths: Tensor


class Objective(Protocol):
    """One choice of what to minimise. New ones are new values that answer these, not new branches in a trainer."""

    @property
    def weights(self) -> Weights:
        """[K] on the simplex, or None for uniform."""

    def rewards(self, pairs: PairLogps) -> Tensor:
        """[B, 2]: the implicit rewards, up to a constant per prompt."""
        ...

    def losses(self, pairs: PairLogps) -> Tensor:
        """[B]: one loss per pair."""
        ...

    def reweighted(self, weights: Weights) -> "Objective":
        """The same objective at other weights, [K] or [K, B]."""
        ...


@dataclass(frozen=True)
class Preference:
    r"""loss(r_chosen, r_rejected) with the implicit rewards that the regularizer gives.

        r = β f'(π / P),     ℓ = log π − log P,     P the regularizer's pool over the references, of whole completions

    Reverse KL: r = β ℓ, and this is DPO on the geometric pool, Σ_k w_k log π_k.
    Log-normalisers depend on the prompt alone and cancel in the margin.
    Forward KL: r = β (1 − e^{−ℓ}); in general r = β (e^{(α−1)ℓ} − 1)/(α − 1).

    **What is exact.** Whole completions differ by hundreds of nats, so for α ≠ 1 the slope dr/dℓ = β e^{(α−1)ℓ} spans e^{±300}:
    it is zero, or infinite, in any floating-point format. We keep r exact while its slope lies in [β²/(β+R), β+R],
    R = `reward_range`; that is, where |ℓ| ≤ log(1 + R/β)/|1 − α|; beyond, r goes on with slope β in ℓ, as reverse KL would.
    It stays continuous and strictly increasing, and a policy that starts far away is pulled back as firmly as by DPO.
    The optimum is that of the exact objective if, at that optimum, every completion in the data has |ℓ| within the limit;
    the metric `log_ratio_clipped` is the share that is outside. Reverse KL is
    linear in ℓ: nothing is ever clipped. `reward_range=math.inf` is the exact map everywhere, with the gradients that it has.

    For α > 1 implicit rewards cannot fall below −β/(α − 1): where the exact optimum truncates (π* = 0), the preference optimum
    is another point (docs/theory.md 3).

    `FDivergence`, which has no pool: r = β Σ_k w_k f'(π/π_k), each f' exact while its slope in ℓ_k is within a factor 1 + R/β
    of that at ℓ_k = 0, which it has beyond.

    Args:
        regularizer: `ReverseKL`, `ForwardKL`, `AlphaDivergence`, `PooledKL` or `FDivergence`, with its weights.
        beta: strength β > 0 (the papers' 1/γ).
        loss: two rewards [B] → losses [B]: `losses.bradley_terry`, `robust`, `ipo`, `hinge`, or a partial of one.
        reward_range: R above, in units of reward (nats of preference).

    Reference: Rafailov et al., 2023, eq. 7, with the reference replaced by the pool (arXiv 2502.01203, appendix F:
    FOUND that it exists, the losses are DERIVED); f-DPO, Wang et al., 2023; the continuation is ours.
    """

    regularizer: Regularizer
    beta: float
    loss: Loss = preference_losses.bradley_terry
    reward_range: float = 10.0

    def __post_init__(self) -> None:
        check_beta(self.beta)
        if not self.reward_range > 0:
            raise ArgumentError(f"reward_range: expected a number above zero, found {self.reward_range}.")

    @classmethod
    def of(cls, regularizer: Regularizer, beta: float, *, loss: Loss = preference_losses.bradley_terry) -> "Preference":
        """DPO and its kin under a regularizer at strength β."""
        return cls(regularizer, beta, loss)

    @property
    def weights(self) -> Weights:
        """The regularizer's."""
        return self.regularizer.weights

    @property
    def log_ratio_limit(self) -> float:
        """|ℓ| up to which the implicit reward is exact: log(1 + R/β)/|1 − α|; infinite for reverse KL."""
        bend = abs(1 - self.regularizer.alpha)
        return math.inf if bend == 0 else math.log1p(self.reward_range / self.beta) / bend

    def log_ratios(self, pairs: PairLogps) -> Tensor:
        """[B, 2]: ℓ = log π − log P, of whole completions; P is not normalised."""
        return pairs.policy - self.regularizer.pool(pairs.references)

    @cached_property
    def _tame(self) -> tuple[float, float, float]:
        """`FDivergence`: between which log-ratios f' is exact, and its slope beyond."""
        if not isinstance(self.regularizer, FDivergence) or self.reward_range == math.inf:
            return -math.inf, math.inf, 1.0
        return self.regularizer.slope.tame(1 + self.reward_range / self.beta)

    def clipped(self, pairs: PairLogps) -> Tensor | None:
        """[B, 2] bool: which implicit rewards go on with a constant slope; None where none can."""
        if isinstance(self.regularizer, FDivergence):
            low, high, _ = self._tame
            ratios, w = log_ratios(pairs.policy, pairs.references, self.weights)
            return ((w > 0) & ((ratios < low) | (ratios > high))).any(0)
        return None if self.log_ratio_limit == math.inf else self.log_ratios(pairs).abs() > self.log_ratio_limit

    def rewards(self, pairs: PairLogps) -> Tensor:
        """[B, 2]: β f'(e^ℓ), continued with slope β beyond `log_ratio_limit`."""
        if isinstance(self.regularizer, FDivergence):
            return self.regularizer.implicit_reward(pairs.policy, pairs.references, beta=self.beta, tame=self._tame)
        if self.log_ratio_limit == math.inf:
            return self.regularizer.implicit_reward(pairs.policy, pairs.references, beta=self.beta)
        log_ratio = self.log_ratios(pairs)
        kept = log_ratio.clamp(-self.log_ratio_limit, self.log_ratio_limit)
        bend = self.regularizer.alpha - 1
        return self.beta * (torch.expm1(bend * kept) / bend + (log_ratio - kept))

    def losses(self, pairs: PairLogps) -> Tensor:
        """[B]: loss(r_chosen, r_rejected)."""
        rewards = self.rewards(pairs)
        return self.loss(rewards[:, 0], rewards[:, 1])

    def reweighted(self, weights: Weights) -> "Preference":
        """The same objective under other weights."""
        return replace(self, regularizer=self.regularizer.with_weights(weights))


@dataclass(frozen=True)
class MultiDPO:
    r"""The weighted sum of K single-reference DPO losses, a published rival.

        L = Σ_k w_k loss(β (log π − log π_k) chosen, the same rejected)

    By Jensen L ≥ the loss of the geometric pool at the same weights, with equality where the references agree on the pair.
    Its optimum is that of no weighted-KL objective. The rewards that it reports are those of the geometric pool.

    Reference: docs/theory.md 7 and 8 (CODE of arXiv 2405.16388 and 2512.10040), there with clipped or length-normalised
    log-probabilities: wrap it in `TrustRegion` or `LengthNormalised` for those.
    """

    beta: float
    weights: Weights = None
    loss: Loss = preference_losses.bradley_terry

    def __post_init__(self) -> None:
        check_beta(self.beta)

    def rewards(self, pairs: PairLogps) -> Tensor:
        """[B, 2]: β Σ_k w_k (log π − log π_k)."""
        ratios, w = log_ratios(pairs.policy, pairs.references, self.weights)
        return self.beta * (w * ratios).sum(0)

    def losses(self, pairs: PairLogps) -> Tensor:
        """[B]: Σ_k w_k loss_k."""
        ratios, w = log_ratios(pairs.policy, pairs.references, self.weights)
        return (w[..., 0] * self.loss(self.beta * ratios[..., 0], self.beta * ratios[..., 1])).sum(0)

    def reweighted(self, weights: Weights) -> "MultiDPO":
        """The same objective under other weights."""
        return replace(self, weights=weights)
