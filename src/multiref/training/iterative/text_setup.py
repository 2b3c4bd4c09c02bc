"""A task of real models: a policy (with a LoRA adapter, or whole), K references of its vocabulary, prompts, an oracle."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multiref.errors import ModelError
from multiref.models import LanguageModel, Tokenisation
from multiref.models.noise import plain_rows, refuse_adapter_dropout, refuse_noise
from multiref.models.spec import TOKENISATION
from multiref.regularizers import FDivergence, Regularizer
from multiref.training.iterative.state import State
from multiref.training.iterative.task import Oracle, Task
from multiref.training.iterative.text import TextPolicy, TextReward, TextWorld, frozen_references, with_adapter

Hidden = Callable[[Sequence[Any], Sequence[str]], Sequence[float]]


@dataclass(frozen=True)
class TextSetting:
    """How a text task is set up, and what is measured of it.

    Attributes:
        lora: options of `peft.LoraConfig`; the policies of the two levels are then adapters on one base.
            None trains all parameters.
        hidden: the reward behind the oracle, where there is one: measured and reported, never shown to the method.
        held_out: completions drawn for each measurement.
        seed: of the adapter and of the completions on which the reward's features are standardised.
    """

    max_new_tokens: int = 24
    tokenisation: Tokenisation = TOKENISATION
    lora: Mapping[str, Any] | None = None
    hidden: Hidden | None = None
    held_out: int = 128
    seed: int = 0


def text_task(
    policy: LanguageModel,
    references: Mapping[str, LanguageModel],
    regularizer: Regularizer,
    *,
    beta: float,
    prompts: Sequence[Any],
    oracle: Callable[[TextWorld], Oracle],
    setting: TextSetting = TextSetting(),
) -> Task:
    """What the methods are given.

    Args:
        oracle: makes the oracle from the world (which turns token ids into texts).

    Raises:
        VocabularyMismatch: a reference of another vocabulary.
    """
    world = TextWorld(prompts, policy.tokenizer, max_new_tokens=setting.max_new_tokens, tokenisation=setting.tokenisation)
    ref_logps = frozen_references(world, references)
    learner = TextPolicy(world, policy.model, adapter=_adapter_of(policy))
    if setting.lora is not None:
        learner = TextPolicy(world, with_adapter(policy.model, setting.lora, seed=setting.seed), adapter="start")
    everyone = torch.arange(len(world.prompts))
    refuse_adapter_dropout(learner.model)
    calibration = (everyone, learner.sample(everyone, 2, torch.Generator().manual_seed(setting.seed)))
    refuse_noise(learner.model, plain_rows(learner.model, world.encoded(everyone[:2], calibration[1][:2])))
    task = Task(
        prompts=len(world.prompts),
        policy=learner,
        ref_logps=ref_logps,
        regularizer=regularizer,
        beta=beta,
        oracle=oracle(world),
        reward_model=TextReward(world, next(iter(references.values())).model, calibration),
    )
    task.measure = _Measure(task, world, tuple(references), setting.hidden, max(2, setting.held_out // len(everyone)))
    return task


def _adapter_of(policy: LanguageModel) -> str | None:
    """The adapter that the policy came with. ModelError for one that cannot be held twice, as the levels need it."""
    if not hasattr(policy.model, "peft_config"):
        return None
    name: str = policy.model.active_adapter
    if (bias := getattr(policy.model.peft_config[name], "bias", "none")) != "none":
        raise ModelError(
            f"The policy's adapter trains the base's biases (bias={bias!r}), of which two copies cannot share one base, as "
            "this method needs. Put a new one on top (lora), or merge it."
        )
    return name


@dataclass(frozen=True)
class _Measure:
    """Estimates on n fresh rollouts of each prompt, drawn with common random numbers:
    KL(π‖π_k), and where the reward is known its mean, the true objective under reverse KL,
    and how far the learnt reward is off under the policy and under its start."""

    task: Task
    world: TextWorld
    names: tuple[str, ...]
    hidden: Hidden | None
    n: int

    def __call__(self, state: State) -> dict[str, Tensor]:
        everyone = torch.arange(self.task.prompts)
        y = state.policy.sample(everyone, self.n, torch.Generator().manual_seed(1))
        logps, refs = state.policy.logps(everyone, y), self.task.ref_logps(everyone, y)
        found = {f"kl/{name}": (logps - ref).mean() for name, ref in zip(self.names, refs)}
        pooled = not isinstance(self.task.regularizer, FDivergence)
        log_ratio = logps - self.task.regularizer.pool(refs) if pooled else torch.zeros_like(logps)
        if pooled:
            found["penalty"] = log_ratio.mean()
        if self.hidden is None:
            return found
        true = self._true(everyone, y)
        found["hidden reward"] = true.mean()
        if pooled and self.task.regularizer.alpha == 1:
            each = true - self.task.beta * log_ratio
            found["true objective"], found["true objective, standard error"] = each.mean(), error_of_mean(each)
        if state.reward is not None and not getattr(state.reward, "pairwise", False):
            found["reward error here"] = _off(state.reward(everyone, y), true)
            start = state.start.sample(everyone, self.n, torch.Generator().manual_seed(1))
            found["reward error at start"] = _off(state.reward(everyone, start), self._true(everyone, start))
        return found

    def _true(self, prompts: Tensor, y: Tensor) -> Tensor:
        if self.hidden is None:
            return torch.full(y.shape[:2], torch.nan)
        texts = self.world.decode(prompts.repeat_interleave(y.shape[1]), y.flatten(0, 1))
        return torch.tensor(list(self.hidden(*texts)), dtype=torch.float32).view(y.shape[:2])


def error_of_mean(each: Tensor) -> Tensor:
    """[X, n] → the standard error of their mean over draws of completions, the prompts being as they are."""
    return (each.var(-1) / each.shape[-1]).mean().div(len(each)).sqrt()


def _off(learnt: Tensor, true: Tensor) -> Tensor:
    """Standard deviation of r̂ − r within a prompt: what a policy can be misled by."""
    error = (learnt - true).detach()
    return (error - error.mean(-1, keepdim=True)).square().mean().mul(error.shape[-1] / (error.shape[-1] - 1)).sqrt()
