"""Published rivals as wrappers of an objective: each changes what the inner objective sees, and nothing else. They compose.

MRPO as published is `AdaptiveWeights(TrustRegion(Preference(PooledKL(order=-1), β)))`:
`mrpo(β, trust_region=0.1, adaptive=True)`.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from multiref import losses as preference_losses
from multiref._logspace import check_weights, expand_weights
from multiref.errors import ArgumentError
from multiref.regularizers import PooledKL
from multiref.training.objectives import Loss, Objective, PairLogps, Preference, Weights
from multiref.weighting import arwc


def mrpo(
    beta: float,
    *,
    weights: Weights = None,
    trust_region: float | None = None,
    anchor: int = 0,
    adaptive: bool = False,
    loss: Loss = preference_losses.bradley_terry,
) -> Objective:
    """MRPO: reverse KL to the harmonic pool, with its clipped trust region and adaptive weights if asked.

    A lower bound of the weighted reverse KL, not that objective (docs/theory.md 7).
    The weight of a reference multiplies 1/π_k, as in the paper; the released code has them swapped (docs/theory.md 7),
    which we do not copy.

    Args:
        trust_region: η, the relative half-width of the clip (0.1 in the released example);
            None leaves the references as they are.
        anchor: which reference the others are clipped around (the policy's initial model, there).
        adaptive: weights per pair from how strongly each reference discriminates (ARWC).
    """
    objective: Objective = Preference(PooledKL(weights, order=-1), beta, loss)
    if trust_region is not None:
        objective = TrustRegion(objective, trust_region, anchor)
    return AdaptiveWeights(objective) if adaptive else objective


@dataclass(frozen=True)
class _Wrapper:
    inner: Objective

    @property
    def weights(self) -> Weights:
        return self.inner.weights

    def seen(self, pairs: PairLogps) -> tuple[Objective, PairLogps]:
        """The inner objective and the pairs it is shown."""
        raise NotImplementedError

    def rewards(self, pairs: PairLogps) -> Tensor:
        objective, shown = self.seen(pairs)
        return objective.rewards(shown)

    def losses(self, pairs: PairLogps) -> Tensor:
        objective, shown = self.seen(pairs)
        return objective.losses(shown)

    def reweighted(self, weights: Weights) -> Objective:
        return replace(self, inner=self.inner.reweighted(weights))


@dataclass(frozen=True)
class LengthNormalised(_Wrapper):
    r"""Every log-probability divided by its number of tokens before the inner objective sees it, policy included.

    Not exact for any objective on whole completions: a *named variant*, because released code uses it (docs/theory.md 8) and
    because for α ≠ 1 it brings the ratios of long completions into range. Each model's own token count is used.
    """

    def seen(self, pairs: PairLogps) -> tuple[Objective, PairLogps]:
        policy = pairs.policy / pairs.lengths
        return self.inner, replace(pairs, policy=policy, references=pairs.references / pairs.ref_lengths)


@dataclass(frozen=True)
class TrustRegion(_Wrapper):
    """The other references clipped around an anchor before the inner objective sees them: MRPO's CTRO, `clipped_references`."""

    rate: float = 0.1
    anchor: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ArgumentError(f"trust region: expected a relative half-width between 0 and 1, found {self.rate}.")

    def seen(self, pairs: PairLogps) -> tuple[Objective, PairLogps]:
        return self.inner, replace(pairs, references=clipped_references(pairs.references, self.rate, self.anchor, self.weights))


@dataclass(frozen=True)
class AdaptiveWeights(_Wrapper):
    """Weights per pair from the raw references, uniform where none discriminates: MRPO's ARWC.
    Outermost, so that they are computed before any clipping.

        w_k ∝ |log π_k(y_w) − log π_k(y_l)|

    The sign is ignored: a reference that confidently prefers the rejected side gets a large weight (docs/theory.md 7;
    kept, because it is the rival).
    """

    def seen(self, pairs: PairLogps) -> tuple[Objective, PairLogps]:
        return self.inner.reweighted(arwc(pairs.references[..., 0] - pairs.references[..., 1])), pairs


def clipped_references(ref_logps: Tensor, rate: float, anchor: int, weights: Weights = None) -> Tensor:
    r"""[K, B, 2] → [K, B, 2]: each reference within a window around the anchor's log-probability,
    proportional to that log-probability.

        m_s = mean of log π_k(y_s) where w_k > 0,   share_s = |m_s| / (|m_w| + |m_l|),   η_s = η · share_s
        log π_k(y_s) ← clip(log π_k(y_s), (1 + η_s) log π_a(y_s), (1 − η_s) log π_a(y_s))

    Log-probabilities are negative, so (1 + η) is the lower end. The window grows with the length of the completion
    (docs/theory.md 7).

    Reference: docs/theory.md 7 (CODE of arXiv 2405.16388, for K = 2); for K > 2 every reference but the anchor is clipped,
    DERIVED.
    """
    if not 0 <= anchor < len(ref_logps):
        raise ArgumentError(
            f"anchor: expected one of the {len(ref_logps)} references, 0 to {len(ref_logps) - 1}, found {anchor}."
        )
    present = (expand_weights(check_weights(weights, len(ref_logps)), ref_logps) > 0).expand_as(ref_logps)
    size = (torch.where(present, ref_logps, 0.0).sum(0) / present.sum(0)).abs()
    eta = rate * size / size.sum(-1, keepdim=True).clamp_min(1e-12)
    centre = ref_logps[anchor]
    return torch.minimum(torch.maximum(ref_logps, (1 + eta) * centre), (1 - eta) * centre)
