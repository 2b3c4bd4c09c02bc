"""The price 1/F of drawing pairs from the references instead of the escort grows exponentially with completion length."""

from __future__ import annotations

import torch

from multiref import bounds
from multiref.divergences import disagreement, kl
from multiref_lab.claim import Check, Claim, Curve, Effort, Figure, Measurement, all_hold, at_least, exactly, near
from multiref_lab.problems import random_bandits, random_language
from multiref_lab.slopes import bootstrap_mean

__all__ = ["PRICE_IN_LENGTH"]

_VOCABULARY = 4


def _measure(effort: Effort) -> Measurement:
    generator = torch.Generator().manual_seed(61)
    seeds, longest = effort.choose((40, 5), (300, 8))
    language, first = random_language(_VOCABULARY, longest, seeds, generator=generator, spread=1.0)
    second = [
        (level + 0.5 * torch.randn(level.shape, generator=generator, dtype=torch.float64)).log_softmax(-1) for level in first
    ]
    length, log_price, log_cover, divergence = [], [], [], []
    for steps in range(1, longest + 1):
        pair = torch.stack([language.logps(model[:steps]) for model in (first, second)])  # [2, S, V^steps]
        length.append(float(steps))
        log_price.append(disagreement(pair))
        log_cover.append(bounds.sampling_coverage(pair).log())
        divergence.append(0.5 * (kl(pair[0], pair[1]) + kl(pair[1], pair[0])))
    price, cover = torch.stack(log_price, -1), torch.stack(log_cover, -1)
    per_token = bootstrap_mean((price[:, -1] - price[:, 0]) / (longest - 1))
    cover_token = bootstrap_mean((cover[:, -1] - cover[:, 0]) / (longest - 1))
    straight = float(torch.corrcoef(torch.stack((torch.tensor(length).double(), price.mean(0))))[0, 1])
    quarter = bootstrap_mean(price[:, -1] / divergence[-1])
    bandits = random_bandits(
        effort.choose(500, 5000), completions=10, references=3, weights=(0.5, 0.3, 0.2), spread=2.0, generator=generator
    )
    above = bounds.sampling_coverage(bandits.ref_logps, (0.5, 0.3, 0.2)) > disagreement(
        bandits.ref_logps, (0.5, 0.3, 0.2)
    ).exp() * (1 + 1e-12)
    above_language = int((cover > price + 1e-12).sum())
    curves = (
        Curve("1/F (mean of logs)", tuple(length), tuple(price.mean(0).exp().tolist()), "bound"),
        Curve("largest escort / mixture (mean of logs)", tuple(length), tuple(cover.mean(0).exp().tolist())),
    )
    checks: tuple[Check, ...] = (
        exactly("sup escort/mixture above 1/F, random instances", 0, float(above.sum()) + above_language),
        at_least("growth of log 1/F per token, nats", 0.0, per_token),
        at_least("growth of log sup(escort/mixture) per token, nats", 0.0, cover_token),
        at_least("correlation of mean log 1/F with length", 0.99, straight),
        near("−log F / KL at w = ½ (symmetrised KL, whole completions)", 0.25, quarter, 0.03),
    )
    return Measurement(checks, Figure("tokens per completion", "price", curves, log_x=False))


PRICE_IN_LENGTH = Claim(
    name="sampling-price-exponential-in-length",
    group="several references",
    statement="sup escort/mixture ≤ 1/F, and 1/F grows exponentially in completion length, at about a quarter of the KL for two references at ½.",
    status="derived",
    source="docs/theory.md 4 and 5",
    predicted="no violation; log 1/F linear in length; −log F / KL ≈ 0.25",
    rule="verified if all hold",
    measure=_measure,
    decide=all_hold,
)
