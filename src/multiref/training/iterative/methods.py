"""The peers of the bilevel method, and every method by name: those that fit the policy itself to labelled pairs, and those that
fit a reward to all labels so far and improve the policy on it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from multiref.errors import ArgumentError, ConfigError
from multiref.training.checks import check_at_least, check_choice, check_whole
from multiref.training.iterative.bilevel import Bilevel
from multiref.training.iterative.loop import FITS, Plan
from multiref.training.iterative.nash import Nash
from multiref.training.iterative.state import State
from multiref.training.iterative.steps import ask, buy, learn, preference_step, refuse_private, some_prompts
from multiref.training.iterative.task import Task
from multiref.training.online.methods import leave_one_out


def _fit(task: Task, state: State, plan: Plan, extra: Callable[[], Tensor | float] = lambda: 0.0) -> dict[str, float]:
    """Steps of DPO on all labels so far, `extra()` added to each loss; what to log."""
    last = 0.0
    for _ in range(plan.steps):
        last = preference_step(task, state, *state.labels.batch(plan.batch, state.generator), extra())
    return {"loss": last}


@dataclass(frozen=True)
class OfflineDPO:
    """DPO under K references on pairs of the starting policy: all labels could have been bought beforehand."""

    name: str = "offline DPO"
    reads: ClassVar = FITS

    def round(self, task: Task, state: State, labels: int, plan: Plan) -> dict[str, float]:
        """Buys `labels` labels, learns, returns what to log."""
        buy(task, state, labels, state.start)
        return _fit(task, state, plan)


@dataclass(frozen=True)
class OnlineDPO:
    """DPO on pairs of the current policy, all labels so far kept."""

    name: str = "online DPO"
    reads: ClassVar = FITS

    def round(self, task: Task, state: State, labels: int, plan: Plan) -> dict[str, float]:
        """Buys `labels` labels, learns, returns what to log."""
        buy(task, state, labels, state.policy)
        return _fit(task, state, plan)


@dataclass(frozen=True)
class XPO:
    """Pairs of the policy against the starting policy; DPO plus α E log π(completion of the starting policy): optimism.

    Reference: arXiv 2405.21046 (formula RECALLED); α ≥ 0 is `optimism`.
    """

    optimism: float = 1e-3
    name: str = "XPO"
    reads: ClassVar = FITS

    def __post_init__(self) -> None:
        check_at_least(self, 0, "optimism")

    def round(self, task: Task, state: State, labels: int, plan: Plan) -> dict[str, float]:
        """Buys `labels` labels, learns, returns what to log."""
        buy(task, state, labels, state.policy, state.start)

        def optimism() -> Tensor:
            seen = some_prompts(task, max(1, plan.batch // 2), state.generator)
            drawn = state.start.sample(seen, 1, state.generator)
            return self.optimism * state.policy.logps(seen, drawn).mean((-1, -2))

        return _fit(task, state, plan, optimism)


@dataclass(frozen=True)
class SAIL:
    r"""The two levels collapsed into one by reading the reward off the policy, and the extra gradient that this leaves:
    DPO on labelled pairs, mixed with self-play pairs and their score terms, under K references.

        loss = (1 − p) DPO(labelled) + p [ DPO(fresh) − γ F (∇ log π(y_w) + ∇ log π(y_l)) ],   F = log σ(reward margin)

    design DP: responses of the data set, the policy as judge; PP: responses of the policy, the policy as judge; PR:
    responses of the policy, the oracle as judge (all its labels are bought online).
    With the policy as judge the label's own score is added.

    Reference: arXiv 2406.15567; names FOUND, equations DERIVED or RECALLED (docs/theory.md 9).
    The objective inherits the likelihood's inconsistency.
    """

    design: Literal["DP", "PP", "PR"] = "PR"
    mixture: float = 0.3
    extra: float = 0.1
    reads: ClassVar = FITS

    def __post_init__(self) -> None:
        check_choice("design", self.design, ("DP", "PP", "PR"))
        check_at_least(self, 0, "extra")
        if not 0 <= self.mixture <= 1:
            raise ArgumentError(f"mixture: found {self.mixture}, expected a share in [0, 1]")

    @property
    def name(self) -> str:
        """As tables and races list it."""
        return f"SAIL-{self.design}"

    def round(self, task: Task, state: State, labels: int, plan: Plan) -> dict[str, float]:
        """Buys `labels` labels, learns, returns what to log."""
        refuse_private(task, self.name)
        buy(task, state, labels, state.policy if self.design == "PR" else state.start)
        return _fit(task, state, plan, lambda: self._online(task, state, plan))

    def _online(self, task: Task, state: State, plan: Plan) -> Tensor:
        """[*S]: what is added to the DPO loss on labelled pairs, p/(1 − p) of it."""
        size = max(2, plan.batch // 2)
        if self.design == "PR":  # labelled already, by the oracle, at the policy of this round
            x, y = state.labels.batch(size, state.generator, since=state.labels.latest)
        elif self.design == "DP":
            x, y = state.labels.batch(size, state.generator)
        else:
            x = some_prompts(task, size, state.generator)
            y = state.policy.sample(x, 2, state.generator)
        logps = state.policy.logps(x, y)
        with torch.no_grad():
            references = task.ref_logps(x, y)
        reward = task.regularizer.implicit_reward(logps, references, beta=task.beta)
        margin = reward[..., 0] - reward[..., 1]
        sign = torch.ones_like(margin)
        if self.design != "PR":
            chance = torch.rand(margin.shape, generator=state.generator)
            sign = torch.where(chance < torch.sigmoid(margin.detach()), 1.0, -1.0)
        fit = logsigmoid(sign * margin)
        centred = leave_one_out(fit.detach(), axis=-1)
        score = centred * (logps.sum(-1) if self.design != "DP" else torch.zeros_like(fit))
        if self.design != "PR":
            score = score + centred * logsigmoid(sign * margin)  # the score of the label that the policy itself gave
        return self.mixture / max(1 - self.mixture, 1e-6) * -(fit + self.extra * score).mean(-1)


@dataclass(frozen=True)
class Iterative:
    """Pairs of the current policy; maximum likelihood on all labels; improve: the stop-gradient objective with memory."""

    name: str = "iterative RLHF"

    def round(self, task: Task, state: State, labels: int, plan: Plan) -> dict[str, float]:
        """Buys `labels` labels, learns, returns what to log."""
        buy(task, state, labels, state.policy)
        return learn(task, state, plan)


@dataclass(frozen=True)
class GSHF:
    """Main agent against an enhancer: of `candidates` rollouts the opponent is the one about whose margin the labels so far say
    least.

    With a linear reward Γ = ‖f(y) − f(y')‖ in the inverse of the pairs' second moments;
    other rewards fall back on the largest predicted margin.
    Reference: arXiv 2312.11456, main agent and enhancer (form FOUND, the choice among rollouts DERIVED).
    """

    candidates: int = 4
    ridge: float = 1.0
    name: str = "GSHF"

    def __post_init__(self) -> None:
        check_whole(self, 2, "candidates")
        if not self.ridge > 0:
            raise ArgumentError(f"ridge: expected a number above 0, found {self.ridge!r}.")

    def round(self, task: Task, state: State, labels: int, plan: Plan) -> dict[str, float]:
        """Buys `labels` labels, learns, returns what to log."""
        x = some_prompts(task, labels, state.generator)
        y = state.policy.sample(x, self.candidates, state.generator)
        far = self._uncertainty(state, x, y)[..., 1:].argmax(-1) + 1  # [*S, M]
        picked = y.gather(-2, far[..., None, None].expand(*far.shape, 1, y.shape[-1]))
        ask(task, state, x, torch.cat((y[..., :1, :], picked), -2))
        return learn(task, state, plan)

    def _uncertainty(self, state: State, x: Tensor, y: Tensor) -> Tensor:
        """[*S, M, n]: of each candidate relative to the first."""
        model, _ = state.learner()
        features = getattr(model, "features", None)
        if features is None:
            with torch.no_grad():
                reward = model(x, y)
            return (reward - reward[..., :1]).abs()
        move = features(x, y) - features(x, y)[..., :1, :]
        dimension = move.shape[-1]
        moments: Tensor = self.ridge * torch.eye(dimension).expand(*move.shape[:-3], dimension, dimension)
        if len(state.labels):
            past = features(*state.labels.take(torch.arange(len(state.labels))))
            seen = past[..., 0, :] - past[..., 1, :]
            moments = moments + torch.einsum("...md,...me->...de", seen, seen)
        return torch.einsum("...mnd,...de,...mne->...mn", move, torch.linalg.inv(moments), move)


@dataclass(frozen=True)
class TwoStage:
    """A quarter of the labels on pairs of the starting policy, then a policy fixed, then the rest on its pairs;
    the reward fitted to all.

    pairs: of the second stage. "own": both completions from the fixed policy. "mixed": one from it, one from the starting
    policy, which stands for the pool. Neither dominates: own pairs need no coverage where the fixed policy is near the
    optimum, mixed ones still see what it left. Where the start covers well, one stage is as good
    (docs/which-online-algorithm.md).

    Reference: arXiv 2411.04625, two-stage mixed-policy sampling (FOUND).
    """

    first_stage: float = 0.25
    pairs: Literal["own", "mixed"] = "own"
    name: str = "two-stage mixed sampling"

    def __post_init__(self) -> None:
        check_choice("pairs", self.pairs, ("own", "mixed"))
        if not 0 <= self.first_stage <= 1:
            raise ArgumentError(f"first_stage: expected a share from 0 to 1, found {self.first_stage!r}.")

    def round(self, task: Task, state: State, labels: int, plan: Plan) -> dict[str, float]:
        """Buys `labels` labels, learns, returns what to log."""
        first = state.labels_used < self.first_stage * plan.labels[-1]
        if not first and state.middle is None:
            state.middle = state.policy.copy()
        source = state.start if first else state.middle
        buy(task, state, labels, source or state.start, state.start if not first and self.pairs == "mixed" else None)
        return learn(task, state, plan)


METHODS: dict[str, Any] = {
    "offline-dpo": OfflineDPO,
    "online-dpo": OnlineDPO,
    "xpo": XPO,
    "sail": SAIL,
    "iterative": Iterative,
    "gshf": GSHF,
    "two-stage": TwoStage,
    "nash": Nash,
    "bilevel": Bilevel,
}


def method_named(name: str, **options: Any) -> Any:
    """A method with its options.

    Raises:
        ConfigError: an unknown name or option.
    """
    if name not in METHODS:
        raise ConfigError(f"method: found {name!r}, expected one of {', '.join(METHODS)}")
    try:
        return METHODS[name](**options)
    except TypeError as error:
        raise ConfigError(f"method {name}: {error}; see `multiref.training.iterative` for its options") from None
