"""The bilevel trainer: an outer step on the reward along a hyper-gradient estimated from fresh labels, an inner loop on the policy.

What the papers say and what is ours: the two-policy penalty step (E1) is our reconstruction of arXiv 2410.15610 from 2309.01753; E2, E3, U1–U3 are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from multiref.bilevel import covariance, independent, shared
from multiref.bilevel.penalty import check_sigma
from multiref.errors import ArgumentError
from multiref.losses import bradley_terry
from multiref.training.bilevel.fisher import implicit_response
from multiref.training.bilevel.loop import History, Plan, train
from multiref.training.bilevel.perturbed import perturb
from multiref.training.bilevel.state import State
from multiref.training.bilevel.steps import Diverged, ask, descend, improve, policy_step, some_prompts
from multiref.training.bilevel.task import Task

__all__ = ["Bilevel", "BilevelTrainer", "Units"]

_TOO_LARGE = 1e4


@dataclass(frozen=True)
class Units:
    """What was drawn and labelled in an outer step: m units a prompt.

    Attributes:
        prompts: [B].
        completions: [*S, B, m·n, L], the policy's own completions; n of them a unit (2 for pairs, 1 against the comparator).
        direct: [*S, B], differentiable in the reward model.
        utility: [*S, B, m], each unit's unbiased estimate of the upper objective.
        loss: the cross-entropy of the labels, for the log.
    """

    prompts: Tensor
    completions: Tensor
    direct: Tensor
    utility: Tensor
    loss: Tensor

    def per_unit(self, values: Tensor) -> Tensor:
        """[*S, B, m·n] → [*S, B, m]: summed over the completions of a unit."""
        return values.unflatten(-1, (self.utility.shape[-1], -1)).sum(-1)


@dataclass(frozen=True)
class Bilevel:
    """One outer step a round.

    Attributes:
        objective: U0 likelihood (the papers'), U1 stop-gradient, U2 de-biased (two labels a pair), U3 measured win rate over the starting policy.
        estimator: E1 two policies and separate rollouts, E2 shared rollouts, E3 covariance (assumes that the policy is the Gibbs policy), CG.
        loop: double: the plan's steps on the policy between outer steps; single: one step, on the outer step's own rollouts.
        sigma: σ of E1 and E2, falling as σ (k + 1)^(−sigma_decay), never below a tenth of it.
        pairs: m, labelled units a prompt, at least 2.
        strength: κ of U3's penalty.
    """

    objective: Literal["U0", "U1", "U2", "U3"] = "U1"
    estimator: Literal["E1", "E2", "E3", "CG"] = "E3"
    loop: Literal["double", "single"] = "double"
    sigma: float = 0.1
    sigma_decay: float = 0.0
    pairs: int = 2
    strength: float = 0.25
    perturbed_steps: int = 3

    def __post_init__(self):
        check_sigma(self.sigma)
        for given, known, what in (
            (self.objective, ("U0", "U1", "U2", "U3"), "objective"),
            (self.estimator, ("E1", "E2", "E3", "CG"), "estimator"),
            (self.loop, ("double", "single"), "loop"),
        ):
            if given not in known:
                raise ArgumentError(f"{what}: found {given!r}, expected one of {', '.join(known)}")
        if self.pairs < 2:
            raise ArgumentError(
                f"pairs: found {self.pairs}, expected at least 2: a covariance needs two units of the same prompt"
            )

    @property
    def name(self) -> str:
        return f"bilevel {self.objective}" + ("" if self.objective == "U1" else f" {self.estimator}")

    def sigma_at(self, round: int) -> float:
        """σ_k."""
        return self.sigma * max(0.1, (round + 1) ** -self.sigma_decay)

    def round(self, task: Task, state: State, labels: int, plan: Plan) -> dict[str, float]:
        if state.reward is None or state.reward_optimizer is None:
            raise ArgumentError("reward_model: found none, expected one: the upper level learns a reward")
        if self.loop == "double":
            improve(task, state, state.reward, steps=plan.steps, prompts=plan.prompts, rollouts=plan.rollouts)
        units = self._units(task, state, labels)
        sigma = self.sigma_at(state.round)
        response = torch.zeros_like(units.direct) if self.objective == "U1" else self._response(task, state, units, sigma, plan)
        for group in state.reward_optimizer.param_groups:
            group["lr"] = plan.reward_rate / (1 + state.round / 10)
        descend(state.reward_optimizer, (units.direct + response).mean(-1), "reward model")
        norm = sum(float(p.grad.square().sum()) for p in state.reward.parameters() if p.grad is not None) ** 0.5
        self._check(task, state, units)
        if self.loop == "single":
            policy_step(task, state, state.reward, units.prompts, units.completions)
        return {"upper loss": float(units.loss.mean()), "sigma": sigma, "hypergradient norm": norm}

    def _check(self, task: Task, state: State, units: Units) -> None:
        with torch.no_grad():
            largest = float(state.reward(units.prompts, units.completions).abs().max())  # type: ignore[misc]
        if not largest / task.beta < _TOO_LARGE:
            raise Diverged(
                f"reward model: a reward of {largest:.3g} at β = {task.beta}; stopped, the last good state is kept. Lower reward_rate"
            )

    def _units(self, task: Task, state: State, labels: int) -> Units:
        """Fresh completions of the current policy, labelled. A U2 unit costs two labels."""
        assert state.reward is not None
        cost = 2 if self.objective == "U2" else 1
        count = max(1, labels // (self.pairs * cost))
        x = some_prompts(task, count, state.generator)
        wide = x.repeat_interleave(self.pairs)
        if self.objective == "U3":
            return self._against_start(task, state, x, wide)
        y = state.policy.sample(x, 2 * self.pairs, state.generator)
        pairs = y.unflatten(-2, (self.pairs, 2)).flatten(-4, -3)  # [*S, B·m, 2, L]
        answers = ask(task, state, wide, pairs, keep=False).to(torch.float32)
        reward = state.reward(wide, pairs)
        margin = reward[..., 0] - reward[..., 1]
        loss = bradley_terry(torch.where(answers > 0.5, margin, -margin), torch.zeros_like(margin))
        value = loss
        if self.objective == "U2":
            again = ask(task, state, wide, pairs, keep=False).to(torch.float32)
            value = (torch.sigmoid(margin) - answers) * (torch.sigmoid(margin) - again)
        value = value.unflatten(-1, (len(x), self.pairs))
        return Units(x, y, value.mean(-1), value.detach(), loss.detach())

    def _against_start(self, task: Task, state: State, x: Tensor, wide: Tensor) -> Units:
        y = state.policy.sample(x, self.pairs, state.generator)
        other = state.start.sample(x, self.pairs, state.generator)
        pairs = torch.stack((y, other), -2).flatten(-4, -3)
        won = ask(task, state, wide, pairs, keep=False).to(torch.float32)
        with torch.no_grad():
            paid = task.implicit_reward(state.policy, x, y)
        utility = self.strength * paid - won.unflatten(-1, (len(x), self.pairs))
        return Units(x, y, torch.zeros(utility.shape[:-1]), utility, 1 - won)

    def _response(self, task: Task, state: State, units: Units, sigma: float, plan: Plan) -> Tensor:
        """[*S, B]: the estimator's response term."""
        assert state.reward is not None
        reward = state.reward(units.prompts, units.completions)
        if self.estimator == "E3":
            return covariance(units.utility, units.per_unit(reward), beta=task.beta)
        if self.estimator == "CG":
            return implicit_response(state.policy, units, reward, beta=task.beta)
        moved = perturb(task, state, units, sigma=sigma, steps=self.perturbed_steps, rate=plan.learning_rate)
        if self.estimator == "E1":
            y = state.policy.sample(units.prompts, plan.rollouts, state.generator)
            apart = moved.sample(units.prompts, plan.rollouts, state.generator)
            return independent(state.reward(units.prompts, y), state.reward(units.prompts, apart), sigma=sigma)
        with torch.no_grad():
            weights = (
                moved.logps(units.prompts, units.completions) - state.policy.logps(units.prompts, units.completions)
            ).exp()
        return shared(reward, weights, sigma=sigma)


class BilevelTrainer:
    """`Bilevel` on a task, as a trainer: `train()` returns the history; `policy` and `reward` are what came out.

    >>> trainer = BilevelTrainer(task, Plan(labels=range(128, 2049, 128)), objective="U1")  # doctest: +SKIP
    >>> trainer.train().lines[-1]["labels"]  # doctest: +SKIP
    2048
    """

    def __init__(self, task: Task, plan: Plan, *, folder: str | Path | None = None, **options):
        self.task, self.plan, self.folder, self.method = task, plan, folder, Bilevel(**options)
        self.state: State | None = None

    def train(self) -> History:
        """Runs, or goes on where the folder's state stands."""
        self.state, history = train(self.task, self.method, self.plan, folder=self.folder)
        return history

    @property
    def policy(self):
        """The lower level's policy as trained; None before."""
        return None if self.state is None else self.state.policy

    @property
    def reward(self):
        """The upper level's reward model as trained; None before."""
        return None if self.state is None else self.state.reward
