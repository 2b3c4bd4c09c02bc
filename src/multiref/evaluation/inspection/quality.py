"""One reference by itself: does its margin agree with the preferences, is it honest about it, does it go by length."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from multiref.data.gsm8k import wilson
from multiref.evaluation.inspection.evidence import Evidence
from multiref.references.token_level import standard_error
from multiref.weighting import fit_preferences

BINS = 10


@dataclass(frozen=True)
class Quality:
    """What one reference's scores show.

    accuracy: share of pairs with margin > 0 (a tie counts one half), with its 95 % interval (Wilson, for as many independent
        pairs as the clustered standard error is worth). Nothing is fitted, so every pair is held out.
    log_loss: mean −log σ(margin); tempered_log_loss: mean −log σ(t · margin) at the best t ≥ 0, `temperature`. A temperature
        far from 1 says that the margin is over- (t < 1) or underconfident as a probability of preference.
    calibration: per bin of equal size (mean |margin|, mean σ(|margin|), share where it is right, count); calibration_error:
        mean absolute difference of the middle two, by count.
    length_correlation: of the margin with the difference of lengths in tokens.
    shorter_accuracy: what "prefer the shorter" would score, for comparison.
    nats_per_token: over all tokens; spread: standard deviation over completions.
    """

    name: str
    accuracy: float
    accuracy_interval: tuple[float, float]
    log_loss: float
    tempered_log_loss: float
    temperature: float
    calibration: tuple[tuple[float, float, float, int], ...]
    calibration_error: float
    length_correlation: float
    shorter_accuracy: float
    nats_per_token: float
    spread: float
    truncated: float
    faults: tuple[str, ...]


def quality(evidence: Evidence, k: int, *, faults: tuple[str, ...]) -> Quality:
    """The k-th reference's quality on this evidence."""
    margins, longer = evidence.margins[k], evidence.longer[k]
    right = (margins > 0).double() + 0.5 * (margins == 0).double()
    shorter = (longer < 0).double() + 0.5 * (longer == 0).double()
    p, error = float(right.mean()), standard_error(right, evidence.groups)
    trials = p * (1 - p) / error**2 if 0 < error < math.inf and 0 < p < 1 else float(evidence.groups.max() + 1)
    fit = fit_preferences(margins[None])
    bins = _bins(margins)
    tokens = evidence.lengths[k].double()
    return Quality(
        name=evidence.names[k],
        accuracy=p,
        accuracy_interval=wilson(p, trials, 1.96),
        log_loss=float(-logsigmoid(margins).mean()),
        tempered_log_loss=fit.loss,
        temperature=fit.scale,
        calibration=bins,
        calibration_error=sum(abs(claimed - found) * count for _, claimed, found, count in bins) / len(margins),
        length_correlation=float(torch.corrcoef(torch.stack([margins, longer]))[0, 1].nan_to_num(0.0)),
        shorter_accuracy=float(shorter.mean()),
        nats_per_token=float(-evidence.logps[k].sum() / tokens.sum().clamp_min(1)),
        spread=float(evidence.rates[k].std()) if evidence.pairs else 0.0,
        truncated=float(evidence.truncated[k].double().mean()),
        faults=faults,
    )


def _bins(margins: Tensor) -> tuple[tuple[float, float, float, int], ...]:
    """Bins of claimed confidence. A pair is looked at from its confident side:
    claim σ(|m|), right if m > 0 (half a point at m = 0)."""
    order = margins.abs().argsort()
    sizes, right = margins.abs(), (margins > 0).double() + 0.5 * (margins == 0).double()
    claims = torch.sigmoid(sizes)
    parts = [part for part in order.chunk(BINS) if len(part)]
    return tuple(
        (float(sizes[part].mean()), float(claims[part].mean()), float(right[part].mean()), len(part)) for part in parts
    )
