"""How fast the exact solutions are, as ratios measured in one run on one machine.

    python benchmarks/exact.py            # 4,096 prompts × 4 references × 1,024 completions, float64: about a minute
    python benchmarks/exact.py --rows 512 # a smaller batch
    python benchmarks/exact.py --cpu-time # CPU seconds instead of wall-clock: for a machine that is busy with other things

Compared with: one weighted sum and one log_softmax over the same arrays (the least that any solution must do),
SciPy's brentq row by row on the same root, and a generic convex solver on the same problem.
Every time is a median of repeats; the first, which warms caches up, is not counted.
Row by row there are two sizes, because the ratio is decided by it: over 1,024 completions brentq's arrays hide Python's price,
and the floor itself is less than 50 times faster per row; over 16 completions they do not.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from record import machine, record
from scipy.optimize import brentq
from torch import Tensor

import multiref as mr

BETA = 0.5
FULL = 4096  # rows from which the marks are meant: a small batch is mostly Python's price
WEIGHTS = (0.1, 0.2, 0.3, 0.4)


def arrays(rows: int, completions: int) -> tuple[Tensor, Tensor]:
    """reward [B, Y] and ref_logps [4, B, Y], float64, seeded."""
    generator = torch.Generator().manual_seed(0)
    reward = torch.randn(rows, completions, generator=generator, dtype=torch.float64)
    logits = torch.randn(len(WEIGHTS), rows, completions, generator=generator, dtype=torch.float64) * 2
    return reward, logits.log_softmax(-1)


clock = time.perf_counter


def median_seconds(function: Callable[[], object], repeats: int) -> float:
    function()
    times = []
    for _ in range(repeats):
        start = clock()
        function()
        times.append(clock() - start)
    return statistics.median(times)


def floor(reward: Tensor, ref_logps: Tensor) -> Tensor:
    """One weighted sum and one log_softmax: reverse KL with nothing checked and no value."""
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    return (torch.tensordot(weights, ref_logps, dims=1) + reward / BETA).log_softmax(-1)


def brentq_row(reward: np.ndarray, ref_logps: np.ndarray, alpha: float) -> np.ndarray:
    """[Y], [4, Y] → π* by SciPy's root finder on λ, for α < 1: π = P ((1 − α)(λ − r)/β + 1)^{−1/(1−α)}."""
    s = 1 - alpha
    pool = np.tensordot(np.array(WEIGHTS), np.exp(s * ref_logps), 1) ** (1 / s)
    best = int(reward.argmax())

    def mass(multiplier: float) -> float:
        return float((pool * (1 + s * (multiplier - reward) / BETA) ** (-1 / s)).sum() - 1)

    pole = reward[best] - BETA / s
    root = brentq(mass, pole + 0.5 * BETA / s * pool[best] ** s, pole + BETA / s * (1 + 1e-9), xtol=1e-14, rtol=1e-14)
    return pool * (1 + s * (root - reward) / BETA) ** (-1 / s)


def convex_solver(reward: np.ndarray, ref_logps: np.ndarray, alpha: float) -> float:
    """[Y], [4, Y] → J* by cvxpy and Clarabel (exponential and power cones), the problem stated reference by reference."""
    import cvxpy as cp

    policy = cp.Variable(len(reward), nonneg=True)
    penalty = 0
    for weight, row in zip(WEIGHTS, np.exp(ref_logps)):
        if alpha == 1:
            divergence = cp.sum(cp.rel_entr(policy, row))
        elif alpha == 0:
            divergence = cp.sum(cp.rel_entr(row, policy))
        else:
            divergence = (cp.power(policy, alpha) @ row ** (1 - alpha) - 1) / (alpha * (alpha - 1))
        penalty = penalty + weight * divergence
    problem = cp.Problem(cp.Maximize(reward @ policy - BETA * penalty), [cp.sum(policy) == 1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(problem.solve(solver=cp.CLARABEL))


MEMBERS = {
    "reverse KL": (mr.ReverseKL(WEIGHTS), 3),
    "forward KL": (mr.ForwardKL(WEIGHTS), 30),
    "α = 0.5": (mr.AlphaDivergence(WEIGHTS), 30),
}


def against_the_floor(reward: Tensor, ref_logps: Tensor, repeats: int) -> dict[str, float]:
    """Prints each member's time beside the floor's; returns seconds per prompt."""
    least = median_seconds(lambda: floor(reward, ref_logps), repeats)
    print(f"{'one weighted sum and log_softmax':38} {least * 1e3:9.1f} ms, {least / len(reward) * 1e6:.2f} µs a row")
    per_row = {}
    for name, (regularizer, mark) in MEMBERS.items():
        seconds = median_seconds(
            lambda regularizer=regularizer: mr.exact.solve(reward, ref_logps, regularizer, beta=BETA), repeats
        )
        per_row[name] = seconds / len(reward)
        case = f"{name}, {len(reward):,} × {reward.shape[-1]:,}"
        record(
            case,
            seconds / least,
            against="one weighted sum and log_softmax",
            at_most=mark if len(reward) >= FULL else None,
            ms=round(seconds * 1e3, 2),
        )
    return per_row


def against_row_by_row(reward: Tensor, ref_logps: Tensor, per_row: dict[str, float], rows: int) -> None:
    """brentq on `rows` prompts one after the other; its answers are checked first."""
    for name in ("forward KL", "α = 0.5"):
        regularizer, _ = MEMBERS[name]
        problems = [(reward[i].numpy(), ref_logps[:, i].numpy()) for i in range(rows)]
        ours = mr.exact.solve(reward[:rows], ref_logps[:, :rows], regularizer, beta=BETA).policy.numpy()
        error = max(np.abs(brentq_row(*p, regularizer.alpha) - mine).max() for p, mine in zip(problems, ours))
        seconds = median_seconds(lambda r=regularizer, p=problems: [brentq_row(*x, r.alpha) for x in p], 3) / rows
        ratio, case = seconds / per_row[name], f"{name} row by row, {len(reward):,} × {reward.shape[-1]:,}"
        record(
            case,
            ratio,
            against="ours (SciPy's brentq)",
            at_least=200 if len(reward) >= FULL else None,
            error=error,
            us_a_row=round(seconds * 1e6, 2),
        )


def against_a_convex_solver(reward: Tensor, ref_logps: Tensor, per_row: dict[str, float], instances: int) -> None:
    """cvxpy on a few prompts, canonicalisation included, as a user would run it."""
    for name, (regularizer, _) in MEMBERS.items():
        times, errors = [], []
        for i in range(instances):
            start = clock()
            value = convex_solver(reward[i].numpy(), ref_logps[:, i].numpy(), regularizer.alpha)
            times.append(clock() - start)
            errors.append(abs(value - mr.exact.solve(reward[i], ref_logps[:, i], regularizer, beta=BETA).value.item()))
        seconds = statistics.median(times)
        ratio, case = seconds / per_row[name], f"{name} per instance, {len(reward):,} × {reward.shape[-1]:,}"
        record(
            case,
            ratio,
            against="ours (cvxpy and Clarabel)",
            at_least=1000 if len(reward) >= FULL else None,
            error=max(errors),
            ms=round(seconds * 1e3, 2),
        )


def main() -> None:
    global clock
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--completions", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--cpu-time", action="store_true")
    asked = parser.parse_args()
    clock = time.process_time if asked.cpu_time else time.perf_counter
    print(machine(), "CPU seconds" if asked.cpu_time else "wall-clock seconds")
    for completions in dict.fromkeys((asked.completions, 16)):
        print(
            f"\n{asked.rows} prompts × {len(WEIGHTS)} references × {completions} completions, float64, "
            f"medians of {asked.repeats}"
        )
        reward, ref_logps = arrays(asked.rows, completions)
        per_row = against_the_floor(reward, ref_logps, asked.repeats)
        print("against a row's share of that batch:")
        against_row_by_row(reward, ref_logps, per_row, rows=min(32, asked.rows))
        if completions == asked.completions:
            against_a_convex_solver(reward, ref_logps, per_row, instances=3)


if __name__ == "__main__":
    main()
