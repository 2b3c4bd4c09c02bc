"""The numbers of an online run, checked once."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from multiref.errors import ArgumentError
from multiref.models import Generation, Tokenisation
from multiref.training.checks import check_at_least, check_choice, check_seed, check_whole

SCHEDULES = ("constant", "linear", "cosine")


@dataclass
class OnlineArguments:
    """How long, how fast, how much at once.

    Args:
        steps: batches of completions; each is followed by as many optimizer steps as the method has `updates`.
        prompts_per_step: prompts of a batch, on each process.
        max_new_tokens: where a completion is cut.
        learning_rate, schedule, warmup: AdamW's peak rate; constant, linear or cosine to zero after `warmup` steps, or below 1
            that share of all steps.
        weight_decay: AdamW's, of matrices; biases and norms do not decay.
        token_budget: rows × longest row of one forward and backward pass; the completions of a prompt stay together.
        generation_batch: completions sampled side by side; None: all of a step.
        cache: transformers' cache implementation for sampling, such as "static".
        save_every: steps between checkpoints, 0: none; `keep`: how many of them stay.
        log_every: steps between lines of metrics, which are averages over them.
        mixed_precision: "none", "bf16" or "fp16": autocast of the policy's passes; None: bf16 on a CUDA device that has it.
        chat_template_kwargs: passed to the policy's chat template for every prompt; a row's own come first. References and
            reward models that have other tokenizers write texts as theirs do.
        temperature: only 1. Log-probabilities are of the model's own distribution, so sampling from another would be another
            objective.
    """

    steps: int = 100
    prompts_per_step: int = 8
    max_new_tokens: int = 64
    learning_rate: float = 1e-5
    schedule: str = "linear"
    warmup: float = 0.0
    weight_decay: float = 0.0
    adam_betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float | None = 1.0
    token_budget: int = 4096
    generation_batch: int | None = None
    cache: Literal["dynamic", "static"] | None = None
    save_every: int = 0
    keep: int = 2
    log_every: int = 1
    seed: int = 0
    mixed_precision: str | None = None
    temperature: float = 1.0
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        betas = tuple(self.adam_betas) if isinstance(self.adam_betas, list | tuple) else ()
        if len(betas) != 2 or not all(isinstance(each, int | float) and 0 <= each < 1 for each in betas):
            raise ArgumentError(f"adam_betas: expected two numbers from 0 to below 1, found {self.adam_betas!r}.")
        self.adam_betas = (float(betas[0]), float(betas[1]))
        check_seed(self.seed)
        check_choice("mixed_precision", self.mixed_precision, (None, "none", "bf16", "fp16"))
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("cache", self.cache, (None, "dynamic", "static"))
        check_whole(self, 1, "steps", "prompts_per_step", "max_new_tokens", "token_budget", "log_every")
        check_whole(self, 0, "save_every", "keep")
        check_at_least(self, 0, "learning_rate", "warmup", "weight_decay")
        if self.generation_batch is not None:
            check_whole(self, 1, "generation_batch")
        if self.max_grad_norm is not None:
            check_at_least(self, 0, "max_grad_norm")
            if self.max_grad_norm == 0:
                raise ArgumentError("max_grad_norm: 0 would hold the policy where it is; expected more, or None for no limit.")
        if not isinstance(self.chat_template_kwargs, Mapping):
            raise ArgumentError(f"chat_template_kwargs: expected a mapping, found {self.chat_template_kwargs!r:.60}.")
        if self.temperature != 1:
            raise ArgumentError(
                f"temperature: expected 1, found {self.temperature}. Completions sampled at another temperature than their "
                "log-probabilities are taken at optimise another objective. (TRL's RLOO under multiref.integrations.trl takes "
                "both at its temperature.)"
            )

    @property
    def generation(self) -> Generation:
        """How completions are sampled."""
        return Generation(self.max_new_tokens, cache=self.cache, batch=self.generation_batch)

    @property
    def tokenisation(self) -> Tokenisation:
        """How the policy's prompts become token ids."""
        return Tokenisation(chat_template_kwargs=self.chat_template_kwargs)

    def autocast(self, device: torch.device) -> str:
        """`mixed_precision` as accelerate takes it, for a policy on this device."""
        if self.mixed_precision is None:
            return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "no"
        return "no" if self.mixed_precision == "none" else self.mixed_precision

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        warm = self.warmup if self.warmup >= 1 else self.warmup * self.steps
        if step < warm:
            return self.learning_rate * min(1.0, (step + 1) / max(warm, 1))  # a share of the steps need be no whole number
        done = (step - warm) / max(self.steps - warm, 1)
        factor = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[self.schedule]
        return self.learning_rate * factor


@dataclass
class AdaptiveBeta:
    """β that seeks a target Σ_k w_k KL(π‖π_k) per completion: β ← β (1 + rate · clip(KL/target − 1, ±0.2)) after each step.

    The optimum is then that of the β at which it comes to rest, which is in the log and in every checkpoint.
    The policy has to keep up: under a learning rate that falls to zero β runs away from a policy that no longer moves,
    so use schedule "constant". Reference: Ziegler et al., 2019, section 2.2.
    """

    target: float
    rate: float = 0.1

    def __post_init__(self) -> None:
        if not self.target > 0:
            raise ArgumentError(f"target: expected a divergence above 0, found {self.target}.")
        if not 0 < self.rate < 5:
            raise ArgumentError(f"rate: expected above 0 and below 5, at which one step takes β to 0, found {self.rate}.")

    def next(self, beta: float, kl: float) -> float:
        """β of the next step, from this step's divergence in nats; moves by at most 20 % of `rate`."""
        return beta * (1 + self.rate * max(-0.2, min(0.2, kl / self.target - 1)))
