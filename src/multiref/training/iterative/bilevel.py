"""The bilevel method: an outer step on the reward along a hyper-gradient estimated from fresh labels,
an inner loop on the policy.

What the papers say and what is ours: the two-policy penalty step is our reconstruction of arXiv 2410.15610 from 2309.01753;
the other estimators, and every objective but the likelihood, are ours.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from multiref.bilevel import check_sigma, covariance
from multiref.errors import ArgumentError
from multiref.losses import bradley_terry
from multiref.training.checkpoint import put_back
from multiref.training.checks import check_at_least, check_choice, check_whole, say_idle
from multiref.training.iterative.labels import LabelledUnits, pair_margin
from multiref.training.iterative.loop import History, Plan, begin, train
from multiref.training.iterative.outer_step import implicit_weights, newton_step, perturb
from multiref.training.iterative.state import Diverged, State
from multiref.training.iterative.steps import ask, improve, policy_step, refuse_private, some_prompts
from multiref.training.iterative.task import Policy, RewardModel, Task

ObjectiveName = Literal["likelihood", "stop_gradient", "debiased", "win_rate"]
EstimatorName = Literal["two_policies", "shared_rollouts", "covariance", "conjugate_gradient"]
LoopName = Literal["double", "single", "momentum"]
OuterName = Literal["adam", "newton"]
_CHOICES = {"objective": ObjectiveName, "estimator": EstimatorName, "loop": LoopName, "outer": OuterName}

_OF_MOVED = "sigma", "sigma_decay", "perturbed_steps"  # of a second policy, moved a little
_TOO_LARGE = 1e4


@dataclass(frozen=True)
class Bilevel:
    """One outer step a round.

    Attributes:
        objective: likelihood (the papers' U0), stop_gradient (U1), debiased (U2: two labels a pair), win_rate (U3:
            measured, over the starting policy).
        estimator: two_policies (E1: separate rollouts), shared_rollouts (E2), covariance (E3:
            assumes that the policy is the Gibbs policy), conjugate_gradient.
        loop: double: the plan's steps on the policy between outer steps; single: one step, on the outer step's own rollouts;
            momentum: single, with the variance-reduced d_k = g_k(φ_k) + (1 − momentum)(d_{k−1} − g_k(φ_{k−1})), both g_k on the
            same labelled rollouts (STORM). The law of the rollouts is the current policy's in both: off by one policy step.
        outer: adam, at the plan's reward_rate/(1 + k/reward_decay); or newton, which has no rate:
            see `newton_step`, ridge its prior. Newton is for stop_gradient (the labels' information is no Hessian of the
            others: the likelihood diverged under it) and a reward linear in features.
        sigma: σ of two_policies and shared_rollouts, falling as σ (k + 1)^(−sigma_decay), never below a tenth of it.
        pairs: m, labelled units a prompt, at least 2.
        strength: κ of win_rate's penalty.
        perturbed_steps: gradient steps from π_0 to π_σ; few of them leave part of the response out (towards stop_gradient).
    """

    objective: ObjectiveName = "stop_gradient"
    estimator: EstimatorName = "covariance"
    loop: LoopName = "double"
    outer: OuterName = "adam"
    ridge: float = 1.0
    momentum: float = 0.2
    sigma: float = 0.1
    sigma_decay: float = 0.0
    pairs: int = 2
    strength: float = 0.25
    perturbed_steps: int = 3

    def __post_init__(self) -> None:
        check_sigma(self.sigma)
        for name, known in _CHOICES.items():
            check_choice(name, getattr(self, name), known)
        if not 0 < self.momentum <= 1:
            raise ArgumentError(f"momentum: found {self.momentum}, expected a share of the fresh gradient in (0, 1]")
        check_whole(self, 1, "perturbed_steps")
        check_whole(self, 2, "pairs")  # a covariance needs two units of the same prompt
        check_at_least(self, 0, "sigma_decay", "strength")
        if not self.ridge > 0 or (self.outer == "newton" and self.objective != "stop_gradient"):
            raise ArgumentError(
                f"outer: found {self.outer} with ridge {self.ridge} for {self.objective}, expected a positive ridge, and adam "
                "for all but stop_gradient"
            )
        plain = self.objective == "stop_gradient"
        moves = not plain and self.estimator in ("two_policies", "shared_rollouts")
        moved = [(name, not moves, "estimator: two_policies or shared_rollouts") for name in _OF_MOVED]
        others = (
            ("estimator", plain, "an objective whose response is followed, not stop_gradient"),
            ("momentum", self.loop != "momentum", "loop: momentum"),
            ("ridge", self.outer != "newton", "outer: newton"),
            ("strength", self.objective != "win_rate", "objective: win_rate"),
        )
        say_idle(self, [(name, idle, f"it is of {what}") for name, idle, what in (*moved, *others)])

    @property
    def name(self) -> str:
        """As tables and races list it."""
        said = [self.objective] if self.objective == "stop_gradient" else [self.objective, self.estimator]
        outer = "" if self.outer == "adam" else ", Newton"
        loop = "" if self.loop == "double" else f", {self.loop} loop"
        return " ".join(["bilevel", *said]).replace("_", " ") + outer + loop

    @property
    def least(self) -> int:
        """Labels of one prompt: a round takes a multiple of them."""
        return self.pairs * (2 if self.objective == "debiased" else 1)

    @property
    def reads(self) -> tuple[str, ...]:
        """What it reads of the plan, beside what every method does."""
        apart = self.objective != "stop_gradient" and self.estimator == "two_policies"
        inner = ("steps", "prompts", "rollouts") if self.loop == "double" else ("rollouts",) if apart else ()
        return inner if self.outer == "newton" else (*inner, "reward_rate", "reward_decay")

    def sigma_at(self, round: int) -> float:
        """σ_k."""
        return self.sigma * float(max(0.1, (round + 1) ** -self.sigma_decay))

    def round(self, task: Task, state: State, labels: int, plan: Plan) -> dict[str, float]:
        """Buys `labels` labels, learns, returns what to log."""
        refuse_private(task, self.name)
        reward, optimizer = state.learner()
        if self.loop == "double":
            improve(task, state, reward, steps=plan.steps, prompts=plan.prompts, rollouts=plan.rollouts)
        units = self._units(task, state, labels)
        sigma = self.sigma_at(state.round)
        gradient = self._gradient(task, state, units, sigma, plan)
        norm = sum(float(g.square().sum()) for g in gradient) ** 0.5
        if self.outer == "newton":
            newton_step(state, units, gradient, ridge=self.ridge)
        else:
            for group in optimizer.param_groups:
                group["lr"] = plan.reward_rate / (1 + state.round / plan.reward_decay)
            for parameter, along in zip(reward.parameters(), gradient, strict=True):
                parameter.grad = along
            optimizer.step()
        with torch.no_grad():
            largest = float(reward(units.prompts, units.completions).abs().max())
        if not largest / task.beta < _TOO_LARGE:
            raise Diverged(
                f"reward model: a reward of {largest:.3g} at β = {task.beta}; stopped, the last good state is kept. Lower "
                "reward_rate"
            )
        if self.loop != "double":
            policy_step(task, state, reward, units.prompts, units.completions)
        return {"upper loss": float(units.loss.mean()), "sigma": sigma, "hypergradient norm": norm}

    def _gradient(self, task: Task, state: State, units: LabelledUnits, sigma: float, plan: Plan) -> list[Tensor]:
        """The hyper-gradient in the reward's parameters, one tensor each, summed over seeds (which do not share parameters)."""
        reward, _ = state.learner()
        parameters = list(reward.parameters())
        follows = self.objective != "stop_gradient"
        weights = self._response_weights(task, state, units, sigma, plan) if follows else []

        def here() -> list[Tensor]:
            """The gradient of the upper objective at the policy as it is now."""
            upper = torch.zeros(units.utility.shape[:-1])  # win_rate does not look at the reward
            if self.objective != "win_rate":
                values = _pair_values(units.answers, units.again, pair_margin(reward, units.prompts, units.completions))
                upper = values.unflatten(-1, (len(units.prompts), self.pairs)).mean(-1)
            for w, y in weights:
                upper = upper + (w * reward(units.prompts, y)).sum(-1)
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
            put_back(zip(parameters, before))
            try:
                past = here()
            finally:
                put_back(zip(parameters, now))
            fresh = [g + (1 - self.momentum) * (d - p) for g, d, p in zip(fresh, running, past)]
        state.momentum = [[g.clone() for g in fresh], now]
        return fresh

    def _units(self, task: Task, state: State, labels: int) -> LabelledUnits:
        """Fresh completions of the current policy, labelled. A debiased unit costs two labels,
        the second asked with the sides exchanged."""
        reward, _ = state.learner()
        if labels < self.least:
            raise ArgumentError(
                f"labels: found a round of {labels}, expected at least {self.least}: what {self.name} has labelled of a prompt."
            )
        count = labels // self.least
        x = some_prompts(task, count, state.generator)
        wide = x.repeat_interleave(self.pairs)
        if self.objective == "win_rate":
            return self._against_start(task, state, x, wide)
        y = state.policy.sample(x, 2 * self.pairs, state.generator)
        pairs = y.unflatten(-2, (self.pairs, 2)).flatten(-4, -3)  # [*S, B·m, 2, L]
        answers = ask(task, state, wide, pairs, keep=False).to(torch.float32)
        again = 1 - ask(task, state, wide, pairs.flip(-2), keep=False).to(torch.float32) if self.least > self.pairs else None
        with torch.no_grad():
            margin = pair_margin(reward, x, y)
            loss = _cross_entropy(answers, margin)
            utility = _pair_values(answers, again, margin).unflatten(-1, (count, self.pairs))
        return LabelledUnits(x, y, answers, again, utility, loss)

    def _against_start(self, task: Task, state: State, x: Tensor, wide: Tensor) -> LabelledUnits:
        y = state.policy.sample(x, self.pairs, state.generator)
        other = state.start.sample(x, self.pairs, state.generator)
        pairs = torch.stack((y, other), -2).flatten(-4, -3)
        won = ask(task, state, wide, pairs, keep=False).to(torch.float32)
        with torch.no_grad():
            paid = task.implicit_reward(state.policy, x, y)
        utility = self.strength * paid - won.unflatten(-1, (len(x), self.pairs))
        return LabelledUnits(x, y, won, None, utility, 1 - won)

    def _response_weights(
        self, task: Task, state: State, units: LabelledUnits, sigma: float, plan: Plan
    ) -> list[tuple[Tensor, Tensor]]:
        """The estimator's response term as Σ weight · r_φ(completion): weights [*S, B, n] and completions [*S, B, n, L]."""
        if self.estimator == "covariance":
            probe = torch.zeros(units.completions.shape[:-1], requires_grad=True)
            response = covariance(units.utility, units.per_unit(probe), beta=task.beta)
            return [(torch.autograd.grad(response.sum(), probe)[0], units.completions)]
        if self.estimator == "conjugate_gradient":
            return [(implicit_weights(state.policy, units, beta=task.beta), units.completions)]
        moved, before = perturb(state, units, sigma=sigma, beta=task.beta, steps=self.perturbed_steps)
        if self.estimator == "two_policies":
            y = state.policy.sample(units.prompts, plan.rollouts, state.generator)
            apart = moved.sample(units.prompts, plan.rollouts, state.generator)
            even = torch.full(y.shape[:-1], 1 / (plan.rollouts * sigma))
            return [(even, y), (-even, apart)]
        with torch.no_grad():
            ratio = (moved.logps(units.prompts, units.completions) - before).exp()
        return [((1 - ratio) / (sigma * ratio.shape[-1]), units.completions)]


def _cross_entropy(answers: Tensor, margin: Tensor) -> Tensor:
    """[*S, B·m], [*S, B·m] → [*S, B·m]."""
    return bradley_terry(torch.where(answers > 0.5, margin, -margin), torch.zeros_like(margin))


def _pair_values(answers: Tensor, again: Tensor | None, margin: Tensor) -> Tensor:
    """[*S, B·m]: each pair's unbiased estimate of the upper objective, differentiable in the margin."""
    if again is None:
        return _cross_entropy(answers, margin)
    p = torch.sigmoid(margin)
    return (p - answers) * (p - again)


class BilevelTrainer:
    """`Bilevel` on a task, as a trainer: `train()` returns the history; `policy` and `reward` are what came out.

    >>> trainer = BilevelTrainer(task, Plan(labels=range(128, 2049, 128)), objective="stop_gradient")  # doctest: +SKIP
    >>> trainer.train().lines[-1].get("labels")  # doctest: +SKIP
    2048
    """

    def __init__(self, task: Task, plan: Plan, *, folder: str | Path | None = None, **options: Any) -> None:
        self.task, self.plan, self.folder, self.method = task, plan, folder, Bilevel(**options)
        self.state = begin(task, plan)

    def train(self) -> History:
        """Runs, or goes on where the folder's state stands. After an error the state is that of the last good round."""
        return train(self.task, self.method, self.plan, folder=self.folder, state=self.state)[1]

    @property
    def policy(self) -> Policy:
        """The lower level's policy as it stands."""
        return self.state.policy

    @property
    def reward(self) -> RewardModel | None:
        """The upper level's reward model as it stands."""
        return self.state.reward
