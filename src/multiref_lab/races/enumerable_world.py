"""A transformer's world in which everything is known: a few tokens, K transformer references, exact sub-optimality,
the price of a label.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from multiref import exact
from multiref.divergences import kl
from multiref.errors import ArgumentError
from multiref.regularizers import ReverseKL
from multiref.training.iterative import State, Task
from multiref_lab import toys
from multiref_lab.preferences import pair_information
from multiref_lab.toys import Size, ToyPolicy

PolicyKind = Literal["transformer", "log-linear", "tabular"]
RewardKind = Literal["features", "transformer"]


@dataclass(frozen=True)
class EnumerableWorld:
    """task: what methods are given. reward [W, X, Y] is hidden from them; best [W, X, Y] is log π*; ref_table [K, W, X, Y].

    W is 1, or one for each seed. features [W, X, Y, d] are what a linear reward model sees. wins [W, X, Y]:
    how often a completion is preferred to one of the starting policy.
    """

    task: Task
    features: Tensor
    reward: Tensor
    best: Tensor
    ref_table: Tensor
    wins: Tensor

    def gap(self, table: Tensor) -> Tensor:
        """[S, X, Y] → [S]: J* − J(π) = β KL(π‖π*), in units of the reward, exact (reverse KL)."""
        return kl(table, self.best.expand_as(table)).mean(-1).mul(self.task.beta)


def smooth_features(worlds: int, size: Size, *, generator: torch.Generator) -> Tensor:
    """[W, X, V^L, d]: tanh of a sum of random embeddings of the prompt and of the token at each place;
    centred per prompt, of unit variance.
    """
    ids = toys.every_completion(size.vocabulary, size.length)
    places = torch.randn(worlds, size.length, size.vocabulary, size.dimension, generator=generator)
    each = (places[:, t, ids[:, t]] for t in range(size.length))
    drawn = sum(each, torch.zeros(())) / size.length**0.5
    features = torch.tanh(0.7 * torch.randn(worlds, size.prompts, 1, size.dimension, generator=generator) + drawn[:, None])
    features = features - features.mean(2, keepdim=True)
    return features / features.std((1, 2), keepdim=True)


def enumerable_world(
    seeds: int,
    size: Size | None = None,
    *,
    beta: float = 0.5,
    policy: PolicyKind = "transformer",
    reward_model: RewardKind = "features",
    worlds: int = 1,
    world_seed: int = 0,
) -> EnumerableWorld:
    """S training runs, in one world or in one each. References are two random transformers, rewards linear in smooth features.

    The policy starts at the first reference.

    Args:
        reward_model: linear in the features that it sees, or a transformer that knows none.
        worlds: 1, or as many as seeds.

    Raises:
        ArgumentError: another number of worlds.
    """
    if worlds not in (1, seeds):
        raise ArgumentError(f"worlds: found {worlds}, expected 1 or as many as seeds ({seeds})")
    size, regularizer, generator = size or Size(), ReverseKL(), torch.Generator().manual_seed(world_seed)
    models = [toys.BatchedTransformer(worlds, size, spread=0.7, generator=generator) for _ in range(2)]
    features = smooth_features(worlds, size, generator=generator)
    theta = torch.randn(worlds, size.dimension, generator=generator)
    reward = torch.einsum("wxyd,wd->wxy", features, theta / theta.norm(dim=-1, keepdim=True))
    tables = torch.stack([model.table() for model in models])  # [K, W, X, Y]
    best = exact.solve(reward.double(), tables, regularizer, beta=beta).log_policy

    def ref_logps(x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([toys.at(table, x, y, size.vocabulary) for table in tables.float()])

    learner = _learner(policy, seeds, models[0], tables.float(), features, generator)
    seen = features[..., : size.seen or size.dimension].contiguous()
    model: toys.TransformerReward | toys.LinearReward = (
        toys.TransformerReward(seeds, size, generator=generator)
        if reward_model == "transformer"
        else toys.LinearReward(seen, size.vocabulary, seeds)
    )
    task = Task(size.prompts, learner, ref_logps, regularizer, beta, toys.TableOracle(reward, size.vocabulary), model)
    world = EnumerableWorld(task, seen, reward, best, tables, _wins(reward.double(), tables[0].exp()))
    task.measure = _measure(world, toys.every_completion(size.vocabulary, size.length))
    return world


def _wins(reward: Tensor, start: Tensor) -> Tensor:
    """[W, X, Y], [W, X, Y] → [W, X, Y]: Σ_{y'} π_1(y') σ(r(y) − r(y')), Bradley–Terry, a prompt at a time."""
    each = [
        (torch.sigmoid(r[..., :, None] - r[..., None, :]) @ p[..., None])[..., 0]
        for r, p in zip(reward.unbind(1), start.unbind(1))
    ]
    return torch.stack(each, 1)


def _learner(
    kind: PolicyKind, seeds: int, first: toys.BatchedTransformer, tables: Tensor, features: Tensor, generator: torch.Generator
) -> ToyPolicy:
    """A policy of this kind at the first reference."""
    vocabulary, length = first.vocabulary, first.length
    if kind == "tabular":
        return toys.TabularPolicy(tables[0], vocabulary, length, seeds)
    if kind == "log-linear":  # the reward's features and the references' log-ratios: holds every Gibbs policy of the pool
        ratios = (tables[1:] - tables[0]).movedim(0, -1)
        return toys.LogLinearPolicy(tables[0], torch.cat((features, ratios), -1), vocabulary, length, seeds)
    learner = toys.BatchedTransformer(seeds, first.size, generator=generator)
    with torch.no_grad():
        for mine, theirs in zip(learner.parameters(), first.parameters()):
            mine.copy_(theirs.expand_as(mine))
    return learner


def _measure(world: EnumerableWorld, completions: Tensor) -> Callable[[State], dict[str, Tensor]]:
    """Exact: the gap, KL(π‖π_k), the win rate over the start, the gap that the reward's own optimum would leave,
    and the reward's error.

    The error is taken under the policy and under its start.
    """
    tables, task = world.ref_table, world.task

    def measure(state: State) -> dict[str, Tensor]:
        if not isinstance(state.policy, ToyPolicy):
            raise ArgumentError(f"policy: found {type(state.policy).__name__}, expected one with a table of all completions")
        table = state.policy.table()
        found = {"gap": world.gap(table), "win rate": (table.exp() * world.wins).sum(-1).mean(-1)}
        found |= {f"kl/reference {k}": kl(table, each.expand_as(table)).mean(-1) for k, each in enumerate(tables)}
        if state.reward is not None and not getattr(state.reward, "pairwise", False):
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


def price_of_labels(world: EnumerableWorld) -> Tensor:
    r"""[W]: lim n · E[J* − J(π_r̂)] for reverse KL and a reward linear in features, fitted to n Bradley–Terry pairs of π*.
    DERIVED, docs/theory.md 9.

        tr(V H⁻¹)/(2β),   V = E_x Cov_{π*}(f),   H = E_x E_{y, y' ~ π*} p (1 − p) Δf Δfᵀ

    What a label is worth at best. p (1 − p) ≤ ¼ and E Δf Δfᵀ = 2V, so it is at least d/β:
    a parameter of the reward costs 1/(βn) or more.
    """
    features, law = world.features.double(), world.best.exp()
    dimension = features.shape[-1]
    spread = torch.zeros(len(law), dimension, dimension, dtype=torch.float64)
    information = torch.zeros_like(spread)
    for x in range(law.shape[1]):  # a prompt at a time: pairs are many
        f, p, r = features[:, x], law[:, x], world.reward[:, x].double()
        f = f - torch.einsum("wy,wyd->wd", p, f)[:, None]
        spread += torch.einsum("wy,wyd,wye->wde", p, f, f)
        won = torch.sigmoid(r[:, :, None] - r[:, None, :])
        weight = won * (1 - won) * p[:, :, None] * p[:, None, :]
        information += pair_information(f, weight)
    trace = torch.linalg.solve(information, spread).diagonal(dim1=-2, dim2=-1).sum(-1)
    return torch.div(trace, 2 * world.task.beta)
