"""The steps that methods share: drawing pairs and having them labelled, fitting a reward, improving a policy on a reward,
a preference step."""

from collections.abc import Callable

import torch
from torch import Tensor

from multiref.errors import ArgumentError
from multiref.training.iterative.labels import check_answers, pair_margin
from multiref.training.iterative.loop import Plan
from multiref.training.iterative.state import Diverged, State
from multiref.training.iterative.task import Policy, Task
from multiref.training.online.methods import leave_one_out


def some_prompts(task: Task, count: int, generator: torch.Generator) -> Tensor:
    """[count]: every prompt as often as every other, up to one, in random order."""
    passes = -(-count // task.prompts)
    return torch.cat([torch.randperm(task.prompts, generator=generator) for _ in range(passes)])[:count]


def refuse_private(task: Task, name: str) -> None:
    """ArgumentError where labels are private and a method has a loss of its own, which would take them as they are."""
    if hasattr(task.oracle, "epsilon"):
        raise ArgumentError(
            f"{name}: found a PrivateOracle; its loss takes labels as they are, flips and all. Use iterative, two-stage, gshf, "
            "nash, online-dpo, offline-dpo or xpo."
        )


def ask(task: Task, state: State, prompts: Tensor, pairs: Tensor, *, keep: bool = True) -> Tensor:
    """Labels [*S, M] for pairs [*S, M, 2, L], counted; and kept in the state's set."""
    answers = check_answers(task.oracle(prompts, pairs[..., 0, :], pairs[..., 1, :], state.generator))
    state.labels_used += len(prompts)
    if keep:
        state.labels.add(prompts, pairs, answers)
    return answers


def buy(task: Task, state: State, labels: int, source: Policy, other: Policy | None = None) -> None:
    """`labels` labels, kept, on pairs of `source`; or with one side of `source` and one of `other`."""
    x = some_prompts(task, labels, state.generator)
    sides = [source.sample(x, 2 if other is None else 1, state.generator)]
    ask(task, state, x, torch.cat(sides if other is None else [*sides, other.sample(x, 1, state.generator)], -2))


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, what: str) -> float:
    """One step on the sum over seeds; refuses what is no number."""
    if not bool(torch.isfinite(loss.detach()).all()):
        raise Diverged(
            f"{what}: the loss is {loss.detach().sum().item()}; stopped, the last good state is kept. Lower its learning rate"
        )
    optimizer.zero_grad(set_to_none=True)
    loss.sum().backward()
    optimizer.step()
    return float(loss.detach().mean())


def fit_reward(task: Task, state: State, *, steps: int, batch: int, rate: float) -> float:
    """Maximum likelihood of the reward model on all labels (Bradley–Terry), by Adam on random batches,
    its rate falling to nothing over the steps."""
    model, optimizer = state.learner()
    last = 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        margin = pair_margin(model, *state.labels.batch(batch, state.generator))
        last = descend(optimizer, task.loss(margin, torch.zeros_like(margin)).mean(-1), "reward model")
    return last


def learn(task: Task, state: State, plan: Plan) -> dict[str, float]:
    """A reward fitted to all labels so far, and the policy improved on it; what to log."""
    loss = fit_reward(task, state, steps=plan.reward_steps, batch=plan.reward_batch, rate=plan.reward_rate)
    improve(task, state, state.learner()[0], steps=plan.steps, prompts=plan.prompts, rollouts=plan.rollouts)
    return {"reward loss": loss}


def improve(
    task: Task, state: State, reward: Callable[[Tensor, Tensor], Tensor], *, steps: int, prompts: int, rollouts: int
) -> None:
    """Policy-gradient ascent on E_π[r] − β Σ_k w_k D(π‖π_k): leave-one-out baseline, the penalty β f'(π/P) in the reward,
    its exact gradient."""
    for _ in range(steps):
        x = some_prompts(task, prompts, state.generator)
        policy_step(task, state, reward, x, state.policy.sample(x, rollouts, state.generator))


def policy_step(task: Task, state: State, reward: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> None:
    """One step of `improve` on rollouts [*S, B, n, L] of the current policy."""
    with torch.no_grad():
        gain = reward(x, y)
        references = task.ref_logps(x, y)
    logps = state.policy.logps(x, y)
    utility = gain - task.regularizer.implicit_reward(logps.detach(), references, beta=task.beta)
    descend(state.optimizer, -(leave_one_out(utility, axis=-1) * logps).mean((-1, -2)), "policy")


def preference_step(task: Task, state: State, prompts: Tensor, completions: Tensor, extra: Tensor | float = 0.0) -> float:
    """One step of DPO under K references: winner first in `completions` [*S, M, 2, L]; `extra` [*S] is added to the loss."""
    reward = task.implicit_reward(state.policy, prompts, completions)
    return descend(state.optimizer, task.loss(reward[..., 0], reward[..., 1]).mean(-1) + extra, "policy")
