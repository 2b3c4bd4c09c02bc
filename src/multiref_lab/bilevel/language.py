"""A transformer's world in which everything is known: 6 tokens, 4 long, 64 prompts, K transformer references, exact sub-optimality."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from multiref import exact
from multiref.divergences import kl
from multiref.errors import ArgumentError
from multiref.regularizers import Regularizer, ReverseKL
from multiref.training.iterative import RewardModel, State, Task
from multiref_lab.toys import (
    BatchedTransformer,
    LinearReward,
    LogLinearPolicy,
    TableOracle,
    TabularPolicy,
    TransformerReward,
    at,
    every_completion,
)

__all__ = ["EnumerableWorld", "enumerable_world"]


@dataclass(frozen=True)
class EnumerableWorld:
    """task: what methods are given. reward [W, X, Y] is hidden from them; best [W, X, Y] is log π*; ref_table [K, W, X, Y]; W is 1 or one for each seed.

    wins [W, X, Y]: how often a completion is preferred to one of the starting policy.
    """

    task: Task
    reward: Tensor
    best: Tensor
    ref_table: Tensor
    wins: Tensor

    def gap(self, table: Tensor) -> Tensor:
        """[S, X, Y] → [S]: J* − J(π) = β KL(π‖π*), in units of the reward, exact (reverse KL)."""
        return self.task.beta * kl(table, self.best.expand_as(table)).mean(-1)


def smooth_features(
    worlds: int, prompts: int, vocabulary: int, length: int, dimension: int, *, generator: torch.Generator
) -> Tensor:
    """[W, X, V^L, d]: tanh of a sum of random embeddings of the prompt and of the token at each place; centred per prompt, of unit variance."""
    ids = every_completion(vocabulary, length)
    places = torch.randn(worlds, length, vocabulary, dimension, generator=generator)
    drawn = sum(places[:, t, ids[:, t]] for t in range(length)) / length**0.5
    features = torch.tanh(0.7 * torch.randn(worlds, prompts, 1, dimension, generator=generator) + drawn[:, None])
    features = features - features.mean(2, keepdim=True)
    return features / features.std((1, 2), keepdim=True)


def enumerable_world(
    seeds: int,
    *,
    beta: float = 0.5,
    prompts: int = 64,
    vocabulary: int = 6,
    length: int = 4,
    dimension: int = 8,
    seen: int | None = None,
    references: int = 2,
    width: int = 24,
    scale: float = 1.0,
    regularizer: Regularizer | None = None,
    policy: Literal["transformer", "log-linear", "tabular"] = "transformer",
    reward_model: Literal["features", "transformer"] = "features",
    worlds: int = 1,
    world_seed: int = 0,
) -> EnumerableWorld:
    """S training runs, in one world or in one each. References are random transformers, rewards linear in smooth features; the policy starts at the first reference.

    Args:
        seen: how many of the reward's features the reward model has; None: all (realisable).
        reward_model: linear in those features, or a transformer of this width that knows none.
        worlds: 1, or as many as seeds.

    Raises:
        ArgumentError: another number of worlds.
    """
    if worlds not in (1, seeds):
        raise ArgumentError(f"worlds: found {worlds}, expected 1 or as many as seeds ({seeds})")
    generator = torch.Generator().manual_seed(world_seed)
    regularizer = regularizer or ReverseKL()
    models = [
        BatchedTransformer(worlds, prompts, vocabulary, length, width=width, spread=0.7, generator=generator)
        for _ in range(references)
    ]
    features = smooth_features(worlds, prompts, vocabulary, length, dimension, generator=generator)
    theta = torch.randn(worlds, dimension, generator=generator)
    reward = torch.einsum("wxyd,wd->wxy", features, scale * theta / theta.norm(dim=-1, keepdim=True))
    tables = torch.stack([model.table() for model in models])  # [K, W, X, Y]
    best = exact.solve(reward.double(), tables, regularizer, beta=beta).log_policy

    def ref_logps(x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([at(table, x, y, vocabulary) for table in tables.float()])

    learner = _learner(policy, seeds, models[0], tables.float(), features, generator)
    model: RewardModel = (
        TransformerReward(seeds, prompts, vocabulary, length, width=width, generator=generator)
        if reward_model == "transformer"
        else LinearReward(features[..., : seen or dimension].contiguous(), vocabulary, seeds)
    )
    task = Task(prompts, learner, ref_logps, regularizer, beta, TableOracle(reward, vocabulary), model)
    world = EnumerableWorld(task, reward, best, tables, _wins(reward.double(), tables[0].exp()))
    task.measure = _measure(world, every_completion(vocabulary, length))
    return world


def _wins(reward: Tensor, start: Tensor) -> Tensor:
    """[W, X, Y], [W, X, Y] → [W, X, Y]: Σ_{y'} π_1(y') σ(r(y) − r(y')), Bradley–Terry, a prompt at a time."""
    each = [
        (torch.sigmoid(r[..., :, None] - r[..., None, :]) @ p[..., None])[..., 0]
        for r, p in zip(reward.unbind(1), start.unbind(1))
    ]
    return torch.stack(each, 1)


def _learner(
    kind: str, seeds: int, first: BatchedTransformer, tables: Tensor, features: Tensor, generator: torch.Generator
) -> Any:
    """A policy of this kind at the first reference."""
    vocabulary, length = first.vocabulary, first.length
    if kind == "tabular":
        return TabularPolicy(tables[0], vocabulary, length, seeds)
    if kind == "log-linear":  # the reward's features and the references' log-ratios: holds every Gibbs policy of the pool
        ratios = (tables[1:] - tables[0]).movedim(0, -1)
        return LogLinearPolicy(tables[0], torch.cat((features, ratios), -1), vocabulary, length, seeds)
    learner = BatchedTransformer(
        seeds,
        tables.shape[2],
        vocabulary,
        length,
        width=first.width,
        heads=first.heads,
        layers=first.layers,
        generator=generator,
    )
    with torch.no_grad():
        for mine, theirs in zip(learner.parameters(), first.parameters()):
            mine.copy_(theirs.expand_as(mine))
    return learner


def _measure(world: EnumerableWorld, completions: Tensor) -> Callable[[State], dict[str, Tensor]]:
    """Exact: the gap, KL(π‖π_k), the win rate over the start, the gap that the reward's own optimum would leave, and the reward's error under the policy and
    under its start."""
    tables, task = world.ref_table, world.task

    def measure(state: State) -> dict[str, Tensor]:
        table = state.policy.table()  # type: ignore[attr-defined]
        found = {"gap": world.gap(table), "win rate": (table.exp() * world.wins).sum(-1).mean(-1)}
        for k in range(len(tables)):
            found[f"kl/reference {k}"] = kl(table, tables[k].expand_as(table)).mean(-1)
        if state.reward is not None:
            each = completions.expand(len(table), 1, *completions.shape)
            learnt = torch.cat([state.reward(x, each) for x in torch.arange(task.prompts).split(1)], 1).double()
            refs = tables.expand(-1, *learnt.shape)
            found["gap of the reward"] = world.gap(exact.solve(learnt, refs, task.regularizer, beta=task.beta).log_policy)
            found["reward error here"] = _margin_error(learnt, world.reward, table)
            found["reward error at start"] = _margin_error(learnt, world.reward, tables[0].expand_as(table))
        return found

    return measure


def _margin_error(learnt: Tensor, reward: Tensor, log_policy: Tensor) -> Tensor:
    """[S]: standard deviation of r̂ − r under a policy, prompts averaged: what the policy can be misled by."""
    error, p = learnt - reward, log_policy.exp()
    return ((p * error**2).sum(-1) - (p * error).sum(-1) ** 2).mean(-1).clamp_min(0).sqrt()
