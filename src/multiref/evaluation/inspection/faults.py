"""Signs that a reference is broken rather than bad: wrong token ids, left padding, a missing template, NaN-ridden weights.

A language model that sees the text it is asked about is never much worse than a guess, and finds hard what others find hard. What fails
that is reported as broken; it gets no weight, because a broken reference has the largest margins of all.
"""

import math

import torch
from torch import Tensor

from multiref.evaluation.inspection.evidence import Evidence

__all__ = ["doubts", "find_faults"]

GUESS = math.log(2**18)  # nats per token of a uniform guess over 262,144 tokens, more than vocabularies have: 12.5
AWAY = 8.0  # nats per token above the best other reference; good and merely foreign models differ by less than log V, in practice by 5
WILD = 0.02  # share of completions worse than a guess
SHORT = 4  # completions of fewer tokens are too noisy for a rate
ADVICE = "check template, tokenizer, padding"


def find_faults(evidence: Evidence) -> tuple[tuple[str, ...], ...]:
    """Per reference, the signs that it is broken, in words; empty where there is none."""
    rates = evidence.rates
    long = (evidence.lengths >= SHORT).all(0).flatten() if evidence.lengths.numel() else torch.zeros(0, dtype=torch.bool)
    rates = rates[:, long] if long.any() else rates
    means = rates.mean(-1)
    agreement = _rank_correlations(rates)
    return tuple(tuple(_signs(k, rates, means, agreement, evidence.names)) for k in range(len(rates)))


def _signs(k: int, rates: Tensor, means: Tensor, agreement: Tensor, names: tuple[str, ...]) -> list[str]:
    signs = []
    others = [i for i in range(len(rates)) if i != k]
    best = min(others, key=lambda i: float(means[i]), default=None)
    if best is not None and means[k] - means[best] > AWAY:
        signs.append(f"{means[k]:.1f} nats per token, {means[k] - means[best]:.1f} above {names[best]!r}: {ADVICE}")
    elif means[k] > GUESS:
        signs.append(f"{means[k]:.1f} nats per token, worse than a uniform guess over any vocabulary: {ADVICE}")
    wild = float((rates[k] > GUESS).double().mean())
    if wild > WILD and means[k] <= GUESS:
        signs.append(f"{wild:.0%} of completions are less likely than under a uniform guess over 262,144 tokens: {ADVICE}")
    if len(others) >= 2:
        mine = max(float(agreement[k, i]) for i in others)
        theirs = max(float(agreement[i, j]) for i in others for j in others if i < j)
        if mine < 0.3 and theirs > 0.6:
            signs.append(
                f"finds other texts hard than the other references do (rank correlation of nats per token at most {mine:.2f}, theirs up to "
                f"{theirs:.2f}): it may not see the text it is asked about; {ADVICE}"
            )
    return signs


def doubts(evidence: Evidence, faults: tuple[tuple[str, ...], ...]) -> list[str]:
    """What two references alone cannot settle: they disagree on what is hard, and either may be the broken one."""
    if len(evidence.names) != 2 or any(faults):
        return []
    agreement = float(_rank_correlations(evidence.rates)[0, 1])
    if agreement > 0.2:
        return []
    a, b = evidence.names
    return [
        f"{a!r} and {b!r} find different texts hard (rank correlation of nats per token {agreement:.2f}): one of them may be broken; {ADVICE}."
    ]


def _rank_correlations(rates: Tensor) -> Tensor:
    """[K, N] → [K, K], Spearman."""
    if rates.shape[1] < 3:
        return torch.eye(len(rates), dtype=torch.float64)
    ranks = rates.argsort(-1).argsort(-1).double()
    ranks = ranks - ranks.mean(-1, keepdim=True)
    ranks = ranks / ranks.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return ranks @ ranks.T
