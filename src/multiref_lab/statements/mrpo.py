"""MRPO's pool, the weighted harmonic mean: a lower bound on the objective, what it costs, and how little its weights do."""

from __future__ import annotations

import torch

from multiref import exact
from multiref._logspace import expectation
from multiref.divergences import kl
from multiref.pools import power_pool
from multiref.regularizers import PooledKL, ReverseKL
from multiref_lab.claim import Check, Claim, Curve, Effort, Figure, Measurement, all_hold, at_least, at_most, exactly, near
from multiref_lab.problems import random_bandits, random_logps
from multiref_lab.slopes import bootstrap_mean

__all__ = ["MRPO_LOSS", "MRPO_LOWER_BOUND", "MRPO_WEIGHTS"]

_BETA, _WEIGHTS = 0.5, (0.5, 0.3, 0.2)


def _problem(effort: Effort, seed: int):
    generator = torch.Generator().manual_seed(seed)
    return random_bandits(effort.choose(300, 3000), references=3, weights=_WEIGHTS, generator=generator), generator


def _lower_bound(effort: Effort) -> Measurement:
    problem, generator = _problem(effort, 81)
    harmonic = power_pool(problem.ref_logps, _WEIGHTS, order=-1.0)
    above, closest = 0, float("inf")
    for _ in range(10):
        policy = random_logps(*problem.reward.shape, generator=generator, spread=2.0)
        surrogate = expectation(policy, problem.reward - _BETA * (policy - harmonic))
        gap = exact.value(policy, problem.reward, problem.ref_logps, ReverseKL(_WEIGHTS), beta=_BETA) - surrogate
        above, closest = above + int((gap < -1e-12).sum()), min(closest, float(gap.min()))
    checks: tuple[Check, ...] = (
        exactly("policies at which the surrogate exceeds the objective", 0, above),
        Check("smallest distance objective − surrogate", "≥ 0", closest, closest >= -1e-12),
    )
    return Measurement(checks)


def _loss(effort: Effort) -> Measurement:
    problem, _ = _problem(effort, 82)
    best = exact.solve(problem.reward, problem.ref_logps, ReverseKL(_WEIGHTS), beta=_BETA)
    rival = exact.solve(problem.reward, problem.ref_logps, PooledKL(_WEIGHTS, order=-1.0), beta=_BETA).log_policy
    lost = (best.value - exact.value(rival, problem.reward, problem.ref_logps, ReverseKL(_WEIGHTS), beta=_BETA))[:, 0]
    distance = _BETA * kl(rival, best.log_policy)[:, 0]
    never = int((lost < -1e-12).sum())
    return Measurement(
        (
            at_most("largest |J* − J(π_MRPO) − β KL(π_MRPO‖π*)|", 1e-11, float((lost - distance).abs().max())),
            exactly("instances in which it beats the optimum", 0, never),
            at_least("mean loss, in units of the reward", 0.0, bootstrap_mean(lost)),
        )
    )


def _weights(effort: Effort) -> Measurement:
    """Whole-completion log-probabilities, sd 10 nats: how far do other weights move each pool's margins?"""
    generator = torch.Generator().manual_seed(83)
    logps = 10 * torch.randn(3, effort.choose(4000, 100_000), generator=generator, dtype=torch.float64) - 200
    other = (0.2, 0.3, 0.5)
    limit = max(abs(torch.tensor(a / b).log().item()) for a, b in zip(_WEIGHTS, other))
    moved = {
        name: (power_pool(logps, _WEIGHTS, order=order) - power_pool(logps, other, order=order))
        for name, order in (("harmonic", -1.0), ("geometric", 0.0))
    }
    uniform = -logps
    share = bootstrap_mean(uniform.softmax(0).amax(0))
    sizes = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0]
    spread = []
    for sd in sizes:
        scaled = (logps + 200) * sd / 10 - 20 * sd  # keeps log-probabilities below zero
        spread.append(
            [float((power_pool(scaled, _WEIGHTS, order=o) - power_pool(scaled, other, order=o)).std()) for o in (-1.0, 0.0)]
        )
    curves = tuple(
        Curve(name, tuple(sizes), tuple(row[i] for row in spread)) for i, name in enumerate(("harmonic (MRPO)", "geometric"))
    )
    checks = (
        at_most("harmonic: largest move, nats", limit + 1e-6, float(moved["harmonic"].abs().max())),
        near("share of the pool that one reference carries, K = 3, uniform weights", 0.94, share, 0.01),
        at_most("spread of the move, harmonic / geometric", 0.5, float(moved["harmonic"].std() / moved["geometric"].std())),
    )
    return Measurement(
        checks, Figure("sd of log-probabilities, nats", "sd of the move, nats", curves), f"weights {_WEIGHTS} against {other}"
    )


MRPO_LOWER_BOUND = Claim(
    name="mrpo-lower-bound",
    group="MRPO",
    statement="MRPO's surrogate E_π[r − β log(π/π̃)], π̃ the harmonic pool, is a lower bound on the multi-reference objective.",
    status="found",
    source="arXiv 2405.16388; docs/theory.md 7",
    predicted="no policy above",
    rule="verified if none is above",
    measure=_lower_bound,
    decide=all_hold,
)
MRPO_LOSS = Claim(
    name="mrpo-loss",
    group="MRPO",
    statement="Maximising MRPO's surrogate loses exactly β KL(π_MRPO‖π*) of the objective that it stands for.",
    status="derived",
    source="docs/theory.md 7",
    predicted="error 0; a positive loss",
    rule="verified if the identity holds and the mean loss is positive",
    measure=_loss,
    decide=all_hold,
)
MRPO_WEIGHTS = Claim(
    name="mrpo-weights-nearly-irrelevant",
    group="MRPO",
    statement="At whole-completion log-probabilities MRPO's weights hardly matter: its pool is the minimum over references.",
    status="derived",
    source="docs/theory.md 3",
    predicted="moves of at most max |log w/w'|; one reference carries 0.94 of the pool at sd 10 nats, K = 3",
    rule="verified if all hold",
    measure=_weights,
    decide=all_hold,
)
