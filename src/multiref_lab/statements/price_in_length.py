"""The price 1/F of drawing pairs from the references instead of the escort grows exponentially with completion length."""

import torch

from multiref import bounds
from multiref.divergences import disagreement, kl
from multiref.report.figures import Curve, Plot
from multiref.training.online import sequence_logps
from multiref_lab.claim import Effort, Measurement, at_least, claim, exactly, near
from multiref_lab.problems import random_bandits, random_language
from multiref_lab.stats import bootstrap_mean

_VOCABULARY, _WEIGHTS = 4, (0.5, 0.3, 0.2)


@claim(
    "sampling-price-exponential-in-length",
    group="several references",
    order=1,
    statement="sup escort/mixture ≤ 1/F, and 1/F grows exponentially in completion length, at about a quarter of the KL for "
    "two references at ½.",
    source="DERIVED, docs/theory.md 4 and 5",
    predicts="no violation; log 1/F linear in length; −log F / KL ≈ 0.25",
    rule="verified if all hold",
)
def price_in_length(effort: Effort) -> Measurement:
    generator = torch.Generator().manual_seed(61)
    seeds, longest = effort.choose((40, 5), (300, 8))
    first = random_language(_VOCABULARY, longest, seeds, generator=generator, spread=1.0)
    moves = [torch.randn(level.shape, generator=generator, dtype=torch.float64) for level in first]
    second = [(level + 0.5 * move).log_softmax(-1) for level, move in zip(first, moves)]
    log_price, log_cover, divergence = [], [], []
    for steps in range(1, longest + 1):
        pair = torch.stack([sequence_logps(model[:steps]) for model in (first, second)])  # [2, S, V^steps]
        log_price.append(disagreement(pair))
        log_cover.append(bounds.sampling_coverage(pair).log())
        divergence.append(0.5 * (kl(pair[0], pair[1]) + kl(pair[1], pair[0])))
    price, cover = torch.stack(log_price, -1), torch.stack(log_cover, -1)
    length = torch.arange(1.0, longest + 1, dtype=torch.float64)
    straight = float(torch.corrcoef(torch.stack((length, price.mean(0))))[0, 1])
    bandits = random_bandits(
        effort.choose(500, 5000), completions=10, references=3, weights=_WEIGHTS, spread=2.0, generator=generator
    )
    limit = disagreement(bandits.ref_logps, _WEIGHTS).exp() * (1 + 1e-12)
    above = (bounds.sampling_coverage(bandits.ref_logps, _WEIGHTS) > limit).sum() + (cover > price + 1e-12).sum()
    per_token, cover_token = (bootstrap_mean((each[:, -1] - each[:, 0]) / (longest - 1)) for each in (price, cover))
    checks = (
        exactly("sup escort/mixture above 1/F, random instances", 0, float(above)),
        at_least("growth of log 1/F per token, nats", 0.0, per_token),
        at_least("growth of log sup(escort/mixture) per token, nats", 0.0, cover_token),
        at_least("correlation of mean log 1/F with length", 0.99, straight),
        near(
            "−log F / KL at w = ½ (symmetrised KL, whole completions)",
            0.25,
            bootstrap_mean(price[:, -1] / divergence[-1]),
            0.03,
        ),
    )
    curves = (
        Curve("1/F (mean of logs)", length.tolist(), price.mean(0).exp().tolist(), "bound"),
        Curve("largest escort / mixture (mean of logs)", length.tolist(), cover.mean(0).exp().tolist()),
    )
    return Measurement(checks, Plot("tokens per completion", "price", curves, log_x=False))
