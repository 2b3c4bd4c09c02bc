"""A transformer's world in which everything is known: 6 tokens, 4 long, 64 prompts, K transformer references, exact sub-optimality."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from multiref import exact
from multiref.divergences import kl
from multiref.regularizers import Regularizer, ReverseKL
from multiref.training.bilevel.enumerable import LinearReward, LogLinearPolicy, TabularPolicy, completion_index
from multiref.training.bilevel.oracles import TableOracle
from multiref.training.bilevel.seeded import SeededTransformer
from multiref.training.bilevel.state import State
from multiref.training.bilevel.task import Task

__all__ = ["EnumerableWorld", "enumerable_world"]


@dataclass(frozen=True)
class EnumerableWorld:
    """task: what methods are given. reward [X, Y] is hidden from them; best [S, X, Y] is log π*; ref_table [K, S, X, Y]."""

    task: Task
    reward: Tensor
    best: Tensor
    ref_table: Tensor

    def gap(self, table: Tensor) -> Tensor:
        """[S, X, Y] → [S]: J* − J(π) = β KL(π‖π*), in units of the reward, exact."""
        return self.task.beta * kl(table, self.best).mean(-1)


def smooth_features(prompts: int, vocabulary: int, length: int, dimension: int, *, generator: torch.Generator) -> Tensor:
    """[X, V^L, d]: tanh of a sum of random embeddings of the prompt and of the token at each place; centred per prompt, of unit variance."""
    ids = torch.cartesian_prod(*[torch.arange(vocabulary)] * length)
    places = torch.randn(length, vocabulary, dimension, generator=generator)
    drawn = sum(places[t, ids[:, t]] for t in range(length)) / length**0.5
    features = torch.tanh(0.7 * torch.randn(prompts, 1, dimension, generator=generator) + drawn)
    features = features - features.mean(1, keepdim=True)
    return features / features.std((0, 1))


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
    world_seed: int = 0,
) -> EnumerableWorld:
    """One world, S training runs in it. References are random transformers, one network for all seeds; the policy starts at the first.

    Args:
        seen: how many of the reward's features the reward model has; None: all (realisable).
    """
    generator = torch.Generator().manual_seed(world_seed)
    regularizer = regularizer or ReverseKL()
    single = [
        SeededTransformer(1, prompts, vocabulary, length, width=width, spread=0.7, generator=generator)
        for _ in range(references)
    ]
    features = smooth_features(prompts, vocabulary, length, dimension, generator=generator)
    theta = torch.randn(dimension, generator=generator)
    reward = (features @ (scale * theta / theta.norm())).float()
    tables = torch.stack([model.table()[0] for model in single])  # [K, X, Y]
    best = exact.solve(reward.double(), tables, regularizer, beta=beta).log_policy.expand(seeds, -1, -1)

    def ref_logps(x: Tensor, y: Tensor) -> Tensor:
        return tables[:, x[None, :, None], completion_index(y, vocabulary)].float()

    shown = features[..., : seen or dimension].contiguous()
    learner: Any
    if policy == "tabular":
        learner = TabularPolicy(tables[0].float(), vocabulary, length, seeds)
    elif policy == "log-linear":  # the reward's features and the references' log-ratios: holds every Gibbs policy of the pool
        ratios = (tables[1:] - tables[0]).movedim(0, -1).float()
        learner = LogLinearPolicy(tables[0].float(), torch.cat((features, ratios), -1), vocabulary, length, seeds)
    else:
        learner = SeededTransformer(seeds, prompts, vocabulary, length, width=width, generator=generator)
        with torch.no_grad():
            for mine, theirs in zip(learner.parameters(), single[0].parameters()):
                mine.copy_(theirs.expand_as(mine))

    def measure(state: State) -> dict[str, Tensor]:
        table = state.policy.table()  # type: ignore[attr-defined]
        found = {"gap": beta * kl(table, best).mean(-1)}
        for k in range(references):
            found[f"kl/reference {k}"] = kl(table, tables[k]).mean(-1)
        if state.reward is not None:
            learnt = torch.einsum("xyd,sd->sxy", shown.double(), state.reward.phi.double())  # type: ignore[attr-defined]
            induced = exact.solve(learnt, tables, regularizer, beta=beta).log_policy
            found["gap of the reward"] = beta * kl(induced, best).mean(-1)
            found["reward error here"] = _margin_error(learnt, reward, table)
            found["reward error at start"] = _margin_error(learnt, reward, tables[0].expand_as(table))
        return found

    task = Task(
        prompts,
        learner,
        ref_logps,
        regularizer,
        beta,
        TableOracle(reward, vocabulary),
        LinearReward(shown, vocabulary, seeds),
        measure,
    )
    return EnumerableWorld(task, reward, best, tables)


def _margin_error(learnt: Tensor, reward: Tensor, log_policy: Tensor) -> Tensor:
    """[S]: standard deviation of r̂ − r under a policy, prompts averaged: what the policy can be misled by."""
    error, p = learnt - reward, log_policy.exp()
    return ((p * error**2).sum(-1) - (p * error).sum(-1) ** 2).mean(-1).clamp_min(0).sqrt()
