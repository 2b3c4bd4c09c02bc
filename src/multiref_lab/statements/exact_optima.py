"""The closed forms are optimal, and their values are what the theorems say."""

from functools import partial

import torch

from multiref import exact
from multiref.divergences import kl
from multiref.exact import Solution
from multiref.pools import power_pool
from multiref.regularizers import AlphaDivergence, ForwardKL, Regularizer, ReverseKL
from multiref_lab.claim import Effort, Findings, all_within, claim, exactly
from multiref_lab.problems import Bandits, bandits_of_seed, random_logps

_BETA, _WEIGHTS = 0.4, (0.5, 0.3, 0.2)
_RULE = "verified if every error is at most {} and no other policy does better"
_exact = partial(claim, group="exact")


def _better(problem: Bandits, regularizer: Regularizer, best: Solution, generator: torch.Generator, tries: int = 20) -> int:
    """How often a random policy, far or near, has a larger objective."""
    count = 0
    for i in range(tries):
        move = torch.randn(problem.reward.shape, generator=generator, dtype=torch.float64)
        other = (best.log_policy + 10.0 ** (-i / 4) * move).log_softmax(-1)
        value = exact.value(other, problem.reward, problem.ref_logps, regularizer, beta=_BETA)
        count += int((value > best.value + 1e-12).sum())
    return count


def _solved(seed: int, effort: Effort, regularizer: Regularizer) -> tuple[Bandits, Solution, torch.Generator]:
    """Random problems, their optima, and the generator for what is drawn next."""
    problem, generator = bandits_of_seed(seed, effort.choose(200, 2000), weights=_WEIGHTS, completions=6)
    return problem, exact.solve(problem.reward, problem.ref_logps, regularizer, beta=_BETA), generator


@_exact(
    "reverse-kl-optimum",
    statement="Under Σ w_k KL(π‖π_k) the optimum is the generalised escort tilted by e^{γr}; "
    "its value is (1/γ) log Σ_y Π π_k^{w_k} e^{γr}.",
    source="FOUND, arXiv 2502.01203, Theorem 5.1; value derived, docs/theory.md 1",
    predicts="errors of rounding size; no better policy",
    rule=_RULE.format("1e-10"),
)
def reverse_kl_optimum(effort: Effort) -> Findings:
    regularizer = ReverseKL(_WEIGHTS)
    problem, best, generator = _solved(1, effort, regularizer)
    escort = problem.law("escort").exp() * (problem.reward / _BETA).exp()
    policy = escort / escort.sum(-1, keepdim=True)
    powers = problem.ref_logps.exp() ** torch.tensor(_WEIGHTS, dtype=torch.float64)[:, None, None, None]
    printed = _BETA * (powers.prod(0) * (problem.reward / _BETA).exp()).sum(-1).log()
    reached = exact.value(best.log_policy, problem.reward, problem.ref_logps, regularizer, beta=_BETA)
    yield all_within("largest |π* − escort e^{γr}/Z|", 1e-10, policy - best.policy)
    yield all_within("largest |J(π*) − (1/γ) log Σ Π π_k^{w_k} e^{γr}|", 1e-10, printed - reached)
    yield exactly("policies that do better", 0, _better(problem, regularizer, best, generator))


@_exact(
    "forward-kl-optimum",
    statement="Under Σ w_k KL(π_k‖π) the optimum is π̄/(γ(Z − r)), Z the root that normalises, within its bracket; "
    "E_π*[r] = Z − 1/γ and 1/(1 + γR) ≤ π*/π̄ ≤ 1/π̄(argmax r).",
    source="FOUND, arXiv 2502.01203, Theorem 6.1; bracket, value, tilt and gap identity derived, docs/theory.md 2",
    predicts="errors of rounding size; no better policy",
    rule=_RULE.format("1e-10"),
)
def forward_kl_optimum(effort: Effort) -> Findings:
    regularizer = ForwardKL(_WEIGHTS)
    problem, best, generator = _solved(2, effort, regularizer)
    mixture, reward = problem.law("mixture").exp(), problem.reward
    root = best.multiplier + _BETA
    policy = mixture * _BETA / (root.unsqueeze(-1) - reward)
    top, at = reward.max(-1)
    low = torch.maximum(top + _BETA * mixture.gather(-1, at.unsqueeze(-1)).squeeze(-1), (mixture * reward).sum(-1) + _BETA)
    outside = int(((root < low - 1e-12) | (root > top + _BETA + 1e-12)).sum())
    spread = sum(w * kl(r, problem.law("mixture")) for w, r in zip(_WEIGHTS, problem.ref_logps))
    value = root - _BETA - _BETA * (mixture * ((root.unsqueeze(-1) - reward) / _BETA).log()).sum(-1) - _BETA * spread
    other = random_logps(*reward.shape, generator=generator)
    ratio = other.exp() / best.policy
    identity = best.value - exact.value(other, reward, problem.ref_logps, regularizer, beta=_BETA)
    phi = _BETA * (mixture * (ratio - 1 - ratio.log())).sum(-1)
    tilt, least = best.policy / mixture, 1 / (1 + (top - reward.amin(-1)) / _BETA)
    most = 1 / mixture.gather(-1, at.unsqueeze(-1)).squeeze(-1)
    far = int(((tilt.amin(-1) < least * (1 - 1e-12)) | (tilt.amax(-1) > most * (1 + 1e-12))).sum())
    yield all_within("largest |π* − π̄/(γ(Z − r))|", 1e-10, policy - best.policy)
    yield all_within("largest |E_π*[r] − (Z − 1/γ)|", 1e-10, (best.policy * reward).sum(-1) - root + _BETA)
    yield all_within("largest error of the value", 1e-10, value - best.value)
    yield all_within("largest error of J* − J(π) = (1/γ) E_π̄[φ(π/π*)]", 1e-10, identity - phi)
    yield exactly("roots outside their bracket", 0, outside)
    yield exactly("tilts π*/π̄ outside their range", 0, far)
    yield exactly("policies that do better", 0, _better(problem, regularizer, best, generator))


@_exact(
    "alpha-family-and-pool-order",
    statement="For every α, K references collapse exactly into the power mean of order 1 − α, "
    "and r − β f'(π*/P) is constant on the support.",
    source="DERIVED, docs/theory.md 3",
    predicts="errors of rounding size at α = −½, ¼, ½, 3/2, 2, 3",
    rule=_RULE.format("1e-8"),
)
def alpha_family(effort: Effort) -> Findings:
    problem, generator = bandits_of_seed(3, effort.choose(200, 2000), weights=_WEIGHTS, completions=6)
    apart, uneven, better = [], [], 0
    for alpha in (-0.5, 0.25, 0.5, 1.5, 2.0, 3.0):
        regularizer, scale = AlphaDivergence(_WEIGHTS, alpha=alpha), alpha * (alpha - 1)
        policy = random_logps(*problem.reward.shape, generator=generator)
        each = [((policy.exp() ** alpha) * (r.exp() ** (1 - alpha))).sum(-1) - 1 for r in problem.ref_logps]
        direct = sum((w * one / scale for w, one in zip(_WEIGHTS, each)), torch.zeros(()))
        pooled = power_pool(problem.ref_logps, _WEIGHTS, order=1 - alpha)
        as_pool = (((policy.exp() ** alpha) * ((1 - alpha) * pooled).exp()).sum(-1) - 1) / scale
        apart.append((direct - as_pool) / (1 + direct.abs()))
        best = exact.solve(problem.reward, problem.ref_logps, regularizer, beta=_BETA)
        ratio = (best.log_policy - pooled).exp()
        slope = problem.reward - _BETA * (ratio ** (alpha - 1) - 1) / (alpha - 1) - best.multiplier.unsqueeze(-1)
        uneven.append(torch.where(best.policy > 1e-8, slope, 0.0))
        better += _better(problem, regularizer, best, generator, tries=8)
    yield all_within("largest relative |Σ w_k D_α(π‖π_k) − its form in the pool of order 1 − α|", 1e-10, torch.stack(apart))
    yield all_within("largest |r − β f'(π*/P) − λ| on the support", 1e-8, torch.stack(uneven))
    yield exactly("policies that do better", 0, better)
