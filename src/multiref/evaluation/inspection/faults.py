"""Signs that a reference is broken rather than bad: wrong token ids, left padding, a missing template, NaN-ridden weights.

A language model that sees the text it is asked about is never much worse than a guess, and finds hard what others find hard.
What fails that is reported as broken; it gets no weight, because a broken reference has the largest margins of all.
"""

import math

import torch
from torch import Tensor

from multiref.evaluation.inspection.evidence import Evidence

GUESS = math.log(2**18)  # nats per token of a uniform guess over 262,144 tokens, more than vocabularies have: 12.5
AWAY = 8.0  # nats per token above the best other one; good and merely foreign models differ by less than log V, mostly by 5
WILD = 0.02  # share of completions worse than a guess
UNEVEN = 2.5  # relative spread of nats per token over completions, against the median of the others
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
    uneven = rates.std(-1) / means.clamp_min(1e-9)
    if _alone(k, agreement, means) and uneven[k] > UNEVEN * uneven[others].median():
        signs.append(
            "its nats per token do not follow the text (rank correlation with another reference at most "
            f"{_best(k, agreement):.2f}) and vary {uneven[k] / uneven[others].median():.1f} times as much as the others': "
            f"{ADVICE}"
        )
    return signs


def _alone(k: int, agreement: Tensor, means: Tensor) -> bool:
    """Whether the others agree on what is hard and this one does not. The best of all is never alone:
    it plainly sees the text, as a specialist among strangers does."""
    others = [i for i in range(len(means)) if i != k]
    if len(others) < 2 or means[k] <= means[others].min():
        return False
    return _best(k, agreement) < 0.3 and max(float(agreement[i, j]) for i in others for j in others if i < j) > 0.6


def _best(k: int, agreement: Tensor) -> float:
    return max(float(agreement[k, i]) for i in range(len(agreement)) if i != k)


def doubts(evidence: Evidence, faults: tuple[tuple[str, ...], ...]) -> list[str]:
    """What the scores alone cannot settle: a reference that finds other texts hard is broken, or at home in other text."""
    rates, names = evidence.rates, evidence.names
    agreement, means = _rank_correlations(rates), rates.mean(-1)
    found = [
        f"{names[k]!r} finds other texts hard than the other references do (rank correlation of nats per token at most "
        f"{_best(k, agreement):.2f}): it is at home in other text, or it does not see the text; {ADVICE}."
        for k in range(len(names))
        if not faults[k] and _alone(k, agreement, means)
    ]
    if len(names) == 2 and not any(faults) and agreement[0, 1] < 0.2:
        found.append(
            f"{names[0]!r} and {names[1]!r} find different texts hard (rank correlation of nats per token "
            f"{agreement[0, 1]:.2f}): they are at home in different text, or one of them may be broken; {ADVICE}."
        )
    return found


def _rank_correlations(rates: Tensor) -> Tensor:
    """[K, N] → [K, K], Spearman."""
    if rates.shape[1] < 3:
        return torch.eye(len(rates), dtype=torch.float64)
    return torch.corrcoef(rates.argsort(-1).argsort(-1).double()).reshape(len(rates), -1)
