"""The bilevel trainer: an outer step on the reward along a hyper-gradient estimated from fresh labels, an inner loop on the policy.

What the papers say and what is ours: the two-policy penalty step (E1) is our reconstruction of arXiv 2410.15610 from 2309.01753; E2, E3, U1–U3 are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from multiref.bilevel import covariance
from multiref.bilevel.penalty import check_sigma
from multiref.errors import ArgumentError
from multiref.losses import bradley_terry
from multiref.training.iterative.conjugate_gradient import implicit_weights
from multiref.training.iterative.loop import History, Plan, begin, train
from multiref.training.iterative.newton import newton_step
from multiref.training.iterative.penalty_method import perturb
from multiref.training.iterative.state import State
from multiref.training.iterative.steps import Diverged, ask, improve, policy_step, some_prompts
from multiref.training.iterative.task import RewardModel, Task

__all__ = ["Bilevel", "BilevelTrainer", "Units"]

_TOO_LARGE = 1e4


@dataclass(frozen=True)
class Units:
    """What was drawn and labelled in an outer step: m units a prompt.

    Attributes:
        prompts: [B].
        completions: [*S, B, m·n, L], the policy's own completions; n of them a unit (2 for pairs, 1 against the comparator).
        answers: [*S, B·m], 1 where the first of a pair was preferred; again: a second label of the same pairs (U2).
        utility: [*S, B, m], each unit's unbiased estimate of the upper objective.
        loss: [*S, B·m], the cross-entropy of the labels, for the log.
    """

    prompts: Tensor
    completions: Tensor
    answers: Tensor
    again: Tensor | None
    utility: Tensor
    loss: Tensor

    def per_unit(self, values: Tensor) -> Tensor:
        """[*S, B, m·n] → [*S, B, m]: summed over the completions of a unit."""
        return values.unflatten(-1, (self.utility.shape[-1], -1)).sum(-1)

    def margin(self, reward: RewardModel) -> Tensor:
        """[*S, B·m]: predicted reward of the first of each pair less that of the second."""
        first, second = reward(self.prompts, self.completions).unflatten(-1, (-1, 2)).unbind(-1)
        return (first - second).flatten(-2)


@dataclass(frozen=True)
class Bilevel:
    """One outer step a round.

    Attributes:
        objective: U0 likelihood (the papers'), U1 stop-gradient, U2 de-biased (two labels a pair), U3 measured win rate over the starting policy.
        estimator: E1 two policies and separate rollouts, E2 shared rollouts, E3 covariance (assumes that the policy is the Gibbs policy), CG.
        loop: double: the plan's steps on the policy between outer steps; single: one step, on the outer step's own rollouts; momentum: single, with the
            variance-reduced d_k = g_k(φ_k) + (1 − momentum)(d_{k−1} − g_k(φ_{k−1})), both g_k on the same labelled rollouts (STORM). The law of
            the rollouts is the current policy's in both: off by one policy step.
        outer: adam, at the plan's reward_rate/(1 + k/reward_decay); or newton, which has no rate: see `newton_step`, ridge its prior. Newton is for U1 (the labels'
            information is no Hessian of the others: U0 diverged under it) and a reward linear in features.
        sigma: σ of E1 and E2, falling as σ (k + 1)^(−sigma_decay), never below a tenth of it.
        pairs: m, labelled units a prompt, at least 2.
        strength: κ of U3's penalty.
        perturbed_steps: gradient steps from π_0 to π_σ, for E1 and E2; few of them leave part of the response out (towards U1).
    """

    objective: Literal["U0", "U1", "U2", "U3"] = "U1"
    estimator: Literal["E1", "E2", "E3", "CG"] = "E3"
    loop: Literal["double", "single", "momentum"] = "double"
    outer: Literal["adam", "newton"] = "adam"
    ridge: float = 1.0
    momentum: float = 0.2
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
            (self.loop, ("double", "single", "momentum"), "loop"),
            (self.outer, ("adam", "newton"), "outer"),
        ):
            if given not in known:
                raise ArgumentError(f"{what}: found {given!r}, expected one of {', '.join(known)}")
        if not 0 < self.momentum <= 1:
            raise ArgumentError(f"momentum: found {self.momentum}, expected a share of the fresh gradient in (0, 1]")
        if self.perturbed_steps < 1:
            raise ArgumentError(f"perturbed_steps: found {self.perturbed_steps}, expected at least one")
        if not self.ridge > 0 or (self.outer == "newton" and self.objective != "U1"):
            raise ArgumentError(
                f"outer: found {self.outer} with ridge {self.ridge} for {self.objective}, expected a positive ridge, and adam for all but U1"
            )
        if self.pairs < 2:
            raise ArgumentError(
                f"pairs: found {self.pairs}, expected at least 2: a covariance needs two units of the same prompt"
            )

    @property
    def name(self) -> str:
        estimator = "" if self.objective == "U1" else f" {self.estimator}"
        outer = "" if self.outer == "adam" else ", Newton"
        return f"bilevel {self.objective}{estimator}{outer}" + ("" if self.loop == "double" else f", {self.loop} loop")

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
        gradient = self._gradient(task, state, units, sigma, plan)
        norm = sum(float(g.square().sum()) for g in gradient) ** 0.5
        if self.outer == "newton":
            newton_step(state, units, gradient, ridge=self.ridge)
        else:
            for group in state.reward_optimizer.param_groups:
                group["lr"] = plan.reward_rate / (1 + state.round / plan.reward_decay)
            for parameter, along in zip(state.reward.parameters(), gradient, strict=True):
                parameter.grad = along
            state.reward_optimizer.step()
        self._check(task, state, units)
        if self.loop != "double":
            policy_step(task, state, state.reward, units.prompts, units.completions)
        return {"upper loss": float(units.loss.mean()), "sigma": sigma, "hypergradient norm": norm}

    def _gradient(self, task: Task, state: State, units: Units, sigma: float, plan: Plan) -> list[Tensor]:
        """The hyper-gradient in the reward's parameters, one tensor each, summed over seeds (which do not share parameters)."""
        assert state.reward is not None
        parameters: list[Tensor] = list(state.reward.parameters())
        weights = None if self.objective == "U1" else self._response_weights(task, state, units, sigma, plan)

        def here() -> list[Tensor]:
            upper = self._upper(state, units)
            if weights is not None:
                upper = upper + sum((w * state.reward(units.prompts, y)).sum(-1) for y, w in weights)  # type: ignore[misc]
            if not bool(torch.isfinite(upper.detach()).all()):
                raise Diverged(
                    "reward model: the upper objective is no number; stopped, the last good state is kept. Lower reward_rate"
                )
            found = torch.autograd.grad(upper.mean(-1).sum(), parameters, allow_unused=True)
            return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found)]

        fresh = here()
        if self.loop != "momentum":
            return fresh
        now = [p.detach().clone() for p in parameters]
        if state.momentum:
            running, before = state.momentum
            with torch.no_grad():
                for parameter, old in zip(parameters, before):
                    parameter.copy_(old)
            try:
                past = here()
            finally:
                with torch.no_grad():
                    for parameter, current in zip(parameters, now):
                        parameter.copy_(current)
            fresh = [g + (1 - self.momentum) * (d - p) for g, d, p in zip(fresh, running, past)]
        state.momentum = [[g.clone() for g in fresh], now]
        return fresh

    def _check(self, task: Task, state: State, units: Units) -> None:
        with torch.no_grad():
            largest = float(state.reward(units.prompts, units.completions).abs().max())  # type: ignore[misc]
        if not largest / task.beta < _TOO_LARGE:
            raise Diverged(
                f"reward model: a reward of {largest:.3g} at β = {task.beta}; stopped, the last good state is kept. Lower reward_rate"
            )

    def _units(self, task: Task, state: State, labels: int) -> Units:
        """Fresh completions of the current policy, labelled. A U2 unit costs two labels, the second asked with the sides exchanged."""
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
        again = 1 - ask(task, state, wide, pairs.flip(-2), keep=False).to(torch.float32) if cost == 2 else None
        units = Units(x, y, answers, again, torch.zeros(0), torch.zeros(0))
        with torch.no_grad():
            margin = units.margin(state.reward)
            loss = bradley_terry(torch.where(answers > 0.5, margin, -margin), torch.zeros_like(margin))
            utility = self._values(units, margin).unflatten(-1, (count, self.pairs))
        return replace(units, utility=utility, loss=loss)

    def _values(self, units: Units, margin: Tensor) -> Tensor:
        """[*S, B·m] → [*S, B·m]: each pair's unbiased estimate of the upper objective, differentiable in the margin."""
        if units.again is None:
            return bradley_terry(torch.where(units.answers > 0.5, margin, -margin), torch.zeros_like(margin))
        p = torch.sigmoid(margin)
        return (p - units.answers) * (p - units.again)

    def _upper(self, state: State, units: Units) -> Tensor:
        """[*S, B]: the upper objective, differentiable in the reward alone (U3 does not look at the reward)."""
        if self.objective == "U3":
            return torch.zeros(units.utility.shape[:-1])
        values = self._values(units, units.margin(state.reward))  # type: ignore[arg-type]
        return values.unflatten(-1, (len(units.prompts), self.pairs)).mean(-1)

    def _against_start(self, task: Task, state: State, x: Tensor, wide: Tensor) -> Units:
        y = state.policy.sample(x, self.pairs, state.generator)
        other = state.start.sample(x, self.pairs, state.generator)
        pairs = torch.stack((y, other), -2).flatten(-4, -3)
        won = ask(task, state, wide, pairs, keep=False).to(torch.float32)
        with torch.no_grad():
            paid = task.implicit_reward(state.policy, x, y)
        utility = self.strength * paid - won.unflatten(-1, (len(x), self.pairs))
        return Units(x, y, won, None, utility, 1 - won)

    def _response_weights(
        self, task: Task, state: State, units: Units, sigma: float, plan: Plan
    ) -> list[tuple[Tensor, Tensor]]:
        """The estimator's response term as Σ weight · r_φ(completion): completions [*S, B, n, L] and weights [*S, B, n]."""
        if self.estimator == "E3":
            probe = torch.zeros(units.completions.shape[:-1], requires_grad=True)
            response = covariance(units.utility, units.per_unit(probe), beta=task.beta)
            return [(units.completions, torch.autograd.grad(response.sum(), probe)[0])]
        if self.estimator == "CG":
            return [(units.completions, implicit_weights(state.policy, units, beta=task.beta))]
        moved, before = perturb(state, units, sigma=sigma, beta=task.beta, steps=self.perturbed_steps)
        if self.estimator == "E1":
            y = state.policy.sample(units.prompts, plan.rollouts, state.generator)
            apart = moved.sample(units.prompts, plan.rollouts, state.generator)
            even = torch.full(y.shape[:-1], 1 / (plan.rollouts * sigma))
            return [(y, even), (apart, -even)]
        with torch.no_grad():
            ratio = (moved.logps(units.prompts, units.completions) - before).exp()
        return [(units.completions, (1 - ratio) / (sigma * ratio.shape[-1]))]


class BilevelTrainer:
    """`Bilevel` on a task, as a trainer: `train()` returns the history; `policy` and `reward` are what came out.

    >>> trainer = BilevelTrainer(task, Plan(labels=range(128, 2049, 128)), objective="U1")  # doctest: +SKIP
    >>> trainer.train().lines[-1]["labels"]  # doctest: +SKIP
    2048
    """

    def __init__(self, task: Task, plan: Plan, *, folder: str | Path | None = None, **options):
        self.task, self.plan, self.folder, self.method = task, plan, folder, Bilevel(**options)
        self.state = begin(task, plan)

    def train(self) -> History:
        """Runs, or goes on where the folder's state stands. After an error the state is that of the last good round."""
        _, history = train(self.task, self.method, self.plan, folder=self.folder, state=self.state)
        return history

    @property
    def policy(self):
        """The lower level's policy as it stands."""
        return self.state.policy

    @property
    def reward(self):
        """The upper level's reward model as it stands."""
        return self.state.reward
