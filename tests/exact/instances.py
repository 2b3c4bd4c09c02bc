"""Random problems to solve: what the marks range over, and the corners where formulas break."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import multiref as mr

NEG_INF = -np.inf
NAMED_ALPHAS = (1.0, 0.0, 0.5, 2.0, -1.0, 3.0, 4.0, -1.5, 1 + 1e-8, 1 - 1e-8, 1e-8, -1e-8, 1 + 1e-4, 1 - 1e-4)
KINDS = ("plain", "plain", "peaked", "vetoed", "outside", "padded", "zero weight", "disjoint")


@dataclass(frozen=True)
class Instance:
    """One problem, in float64 arrays: reward [Y], ref_logps [K, Y], weights [K]."""

    reward: np.ndarray
    ref_logps: np.ndarray
    weights: np.ndarray
    beta: float
    alpha: float
    kind: str

    @property
    def regularizer(self):
        """The value a user would write for this α."""
        weights = tuple(self.weights.tolist())
        if self.alpha == 1:
            return mr.ReverseKL(weights)
        return mr.ForwardKL(weights) if self.alpha == 0 else mr.AlphaDivergence(weights, alpha=self.alpha)

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(self.reward), torch.from_numpy(self.ref_logps)

    def solve(self):
        reward, ref_logps = self.tensors
        return mr.exact.solve(reward, ref_logps, self.regularizer, beta=self.beta)

    def __str__(self) -> str:
        k, y = self.ref_logps.shape
        return f"{self.kind}: K={k} Y={y} alpha={self.alpha!r} beta={self.beta:.3g} max|r|={self.scale:.3g}"

    @property
    def scale(self) -> float:
        """max |r| over the completions that exist."""
        return float(np.abs(self.reward[np.isfinite(self.reward)]).max())


def log_normalised(logits: np.ndarray) -> np.ndarray:
    """Along the last axis, −inf staying −inf."""
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def random_instance(rng: np.random.Generator, alpha: float | None = None, kind: str | None = None) -> Instance:
    """K ≤ 5, Y ≤ 50, β from 1e-3 to 1e3, rewards of size 0.1 to 30, references as peaked as 1e-30."""
    k, y = int(rng.integers(1, 6)), int(rng.integers(2, 51))
    kind = kind or str(rng.choice(KINDS))
    if alpha is None:
        alpha = float(rng.choice(NAMED_ALPHAS) if rng.random() < 0.5 else rng.uniform(-1.5, 4.0))
    reward = rng.normal(size=y) * 10 ** rng.uniform(-1, 1)
    logits = rng.normal(size=(k, y)) * 10 ** rng.uniform(-1, 0.5)
    weights = rng.dirichlet(np.full(k, 10 ** rng.uniform(-0.5, 1)))
    if kind in ("peaked", "disjoint"):
        logits = np.full((k, y), -69.0) + rng.normal(size=(k, y)) * rng.uniform(0, 3)
        modes = rng.permutation(y)[:k] if kind == "disjoint" else np.full(k, rng.integers(y))
        logits[np.arange(k), np.resize(modes, k)] = 0.0
    if kind == "zero weight" and k > 1:
        weights[int(rng.integers(k))] = 0.0
    shared = int(rng.integers(y))  # one completion that every reference supports, so that no pool is empty
    dropped = np.delete(np.arange(y), shared)
    if kind == "vetoed":
        logits[int(rng.integers(k)), rng.permutation(dropped)[: max(1, y // 4)]] = NEG_INF
    if kind == "outside":
        gone = rng.permutation(dropped)[: max(1, y // 5)]
        logits[:, gone] = NEG_INF
        reward[gone] += rng.choice([0.0, 3.0]) * np.abs(reward).max()
    if kind == "padded":
        gone = rng.permutation(dropped)[: y // 3]
        logits[:, gone] = reward[gone] = NEG_INF
    weights = weights / weights.sum()
    return Instance(reward, log_normalised(logits), weights, float(10 ** rng.uniform(-3, 3)), alpha, kind)


def instances(count: int, seed: int) -> Iterator[Instance]:
    """The first `count` problems of a stream that depends on the seed alone."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield random_instance(rng)
