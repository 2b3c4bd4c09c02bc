"""A task of real models: a policy (with a LoRA adapter, or whole), K references of its vocabulary, prompts, an oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from multiref.models import LanguageModel
from multiref.regularizers import Regularizer
from multiref.training.iterative.state import State
from multiref.training.iterative.task import Oracle, Task
from multiref.training.iterative.text import TextPolicy, TextReward, TextWorld, frozen_references, with_adapter

__all__ = ["save_policy", "text_task"]

Hidden = Callable[[Sequence[str], Sequence[str]], Sequence[float]]


def text_task(
    policy: LanguageModel,
    references: dict[str, LanguageModel],
    regularizer: Regularizer,
    *,
    beta: float,
    prompts: Sequence[str],
    oracle: Callable[[TextWorld], Oracle],
    max_new_tokens: int = 24,
    lora: dict[str, Any] | None = None,
    hidden: Hidden | None = None,
    held_out: int = 128,
    seed: int = 0,
) -> Task:
    """What the methods are given.

    Args:
        oracle: makes the oracle from the world (which turns token ids into texts).
        lora: options of `peft.LoraConfig`; the policies of the two levels are then adapters on one base. None trains all parameters.
        hidden: the reward behind the oracle, where there is one: measured and reported, never shown to the method.
        held_out: completions drawn for each measurement.

    Raises:
        VocabularyMismatch: a reference of another vocabulary.
    """
    world = TextWorld(prompts, policy.tokenizer, max_new_tokens=max_new_tokens)
    ref_logps = frozen_references(
        world, [each.model for each in references.values()], [each.tokenizer for each in references.values()]
    )
    learner = (
        TextPolicy(world, policy.model)
        if lora is None
        else TextPolicy(world, with_adapter(policy.model, lora, seed=seed), adapter="start")
    )
    everyone = torch.arange(len(world.prompts))
    calibration = (everyone, learner.sample(everyone, 2, torch.Generator().manual_seed(seed)))
    return Task(
        prompts=len(world.prompts),
        policy=learner,
        ref_logps=ref_logps,
        regularizer=regularizer,
        beta=beta,
        oracle=oracle(world),
        reward_model=TextReward(world, next(iter(references.values())).model, calibration),
        measure=_measure(world, list(references), ref_logps, regularizer, beta, hidden, held_out),
    )


def _measure(
    world: TextWorld,
    names: list[str],
    ref_logps: Any,
    regularizer: Regularizer,
    beta: float,
    hidden: Hidden | None,
    held_out: int,
) -> Callable[[State], dict[str, Tensor]]:
    """Estimates on the same number of fresh rollouts each time, drawn with common random numbers: KL(π‖π_k), and where the reward is known its mean,
    the true objective under reverse KL, and how far the learnt reward is off under the policy and under its start."""
    everyone = torch.arange(len(world.prompts))
    n = max(2, held_out // len(everyone))

    def measure(state: State) -> dict[str, Tensor]:
        y = state.policy.sample(everyone, n, torch.Generator().manual_seed(1))
        logps, refs = state.policy.logps(everyone, y), ref_logps(everyone, y)
        found = {f"kl/{name}": (logps - ref).mean() for name, ref in zip(names, refs)}
        found["penalty"] = (logps - regularizer.pool(refs)).mean()
        if hidden is None:
            return found
        true = _hidden(world, hidden, everyone, y)
        found["hidden reward"] = true.mean()
        if regularizer.alpha == 1:
            each = true - beta * (logps - regularizer.pool(refs))
            found["true objective"], found["true objective, standard error"] = each.mean(), _error_of_mean(each)
        if state.reward is not None:
            found["reward error here"] = _off(state.reward(everyone, y), true)
            start = state.start.sample(everyone, n, torch.Generator().manual_seed(1))
            found["reward error at start"] = _off(state.reward(everyone, start), _hidden(world, hidden, everyone, start))
        return found

    return measure


def _hidden(world: TextWorld, hidden: Hidden, prompts: Tensor, y: Tensor) -> Tensor:
    texts = world.decode(prompts.repeat_interleave(y.shape[1]), y.flatten(0, 1))
    return torch.tensor(list(hidden(*texts)), dtype=torch.float32).view(y.shape[:2])


def _error_of_mean(each: Tensor) -> Tensor:
    """[X, n] → the standard error of their mean over draws of completions, the prompts being as they are."""
    return (each.var(-1) / each.shape[-1]).mean().div(len(each)).sqrt()


def _off(learnt: Tensor, true: Tensor) -> Tensor:
    """Standard deviation of r̂ − r within a prompt: what a policy can be misled by."""
    error = (learnt - true).detach()
    return (error - error.mean(-1, keepdim=True)).square().mean().mul(error.shape[-1] / (error.shape[-1] - 1)).sqrt()


def save_policy(policy: Any, folder: Any) -> None:
    """The policy as transformers or PEFT loads it, tokenizer included."""
    if policy.adapter is None:
        policy.model.save_pretrained(folder)
    else:
        policy.model.set_adapter(policy.adapter)
        # PEFT puts adapters of other names into folders of their own; merged weights would lose the adapter, so rename what is written
        policy.model.save_pretrained(folder, selected_adapters=[policy.adapter])
        _flatten(folder, policy.adapter)
    policy.world.tokenizer.save_pretrained(folder)


def _flatten(folder: Any, adapter: str) -> None:
    from pathlib import Path

    inner = Path(folder) / adapter
    for file in inner.iterdir():
        file.replace(Path(folder) / file.name)
    inner.rmdir()
