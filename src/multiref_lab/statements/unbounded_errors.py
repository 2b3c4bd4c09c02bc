"""Reward errors without a bound: what is lost is a cumulant of the error under the learnt policy."""

import torch
from torch import Tensor

from multiref import bounds, exact
from multiref.divergences import kl
from multiref.regularizers import ReverseKL
from multiref_lab.claim import Check, Effort, Measurement, all_within, claim, exactly
from multiref_lab.problems import random_bandits


def _sub_gaussian(log_policy: Tensor, error: Tensor, beta: float) -> Tensor:
    """[S, Y] twice → [S]: the least s, the supremum of 2 log E e^{u(Δ − EΔ)}/u² over u, on a grid of u of both signs that
    holds ±1/β; as u → 0 it is the variance."""
    p = log_policy.exp()
    centred = error - (p * error).sum(-1, keepdim=True)
    u = torch.logspace(-3, 3, 241, dtype=torch.float64)
    u = torch.cat((-u, u, torch.tensor([-1 / beta, 1 / beta], dtype=torch.float64)))[:, None, None]
    return (2 * torch.logsumexp(log_policy + u * centred, -1) / u[..., 0] ** 2).amax(0).sqrt()


@claim(
    "subgaussian-errors",
    group="reverse KL",
    order=1,
    statement="Reward errors need no bound: J(π*) − J(π_r̂) = β log E_π̂ e^{−Δ/β} + E_π̂ Δ, at most s²/(2β) for an error Δ that "
    "is s-sub-Gaussian under the learnt policy.",
    source="DERIVED, docs/bounds.md, U (left open by arXiv 2502.01203)",
    predicts="no violation in ≥ 1,000; the identity to rounding",
)
def subgaussian_errors(effort: Effort) -> Measurement:
    generator = torch.Generator().manual_seed(61)
    problem = random_bandits(effort.choose(200, 2000), completions=8, weights=(0.6, 0.4), generator=generator)
    reward, refs = problem.reward[:, 0], problem.ref_logps[:, :, 0]
    error = torch.randn(reward.shape, generator=generator, dtype=torch.float64)
    error = (
        error * torch.logspace(-2, 1, len(error), dtype=torch.float64)[torch.randperm(len(error), generator=generator)][:, None]
    )
    gaps, ratios, violations = [], [], 0
    for beta in (0.1, 0.3, 1.0, 3.0, 10.0):
        best, used = (exact.solve(r, refs, ReverseKL((0.6, 0.4)), beta=beta).log_policy for r in (reward, reward + error))
        lost = beta * kl(used, best)
        cumulant = beta * torch.logsumexp(used - error / beta, -1) + (used.exp() * error).sum(-1)
        gaps.append((lost - cumulant) / (1 + lost))
        s = _sub_gaussian(used, error, beta).tolist()
        values = [bounds.subgaussian_suboptimality(deviation=each, beta=beta).value for each in s]
        limit = torch.tensor(values, dtype=torch.float64)
        violations += int((lost > limit * (1 + 1e-9) + 1e-12).sum())
        ratios.append(lost / limit)
    ratio = torch.cat(ratios)
    checks = (
        all_within("largest |J(π*) − J(π_r̂) − cumulant|, relative to 1 + gap", 1e-12, torch.cat(gaps)),
        exactly(f"violations in {len(ratio):,}", 0, violations),
        Check("median gap / bound", "≤ 1, recorded", float(ratio.median()), float(ratio.median()) <= 1),
    )
    return Measurement(checks, note="Errors are normal, of size 0.01 to 10 times the range of rewards; s is exact, on a grid.")
