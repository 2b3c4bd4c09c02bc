"""One preference run in a world: the policy in, the policy trained in place. The demo and the frontier train by it."""

import tempfile
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from multiref.models import Tokenisation
from multiref.training import LogLines, Objective, PreferenceData, PreferenceTrainer, silence, training_arguments


def train_on_pairs(
    policy: PreTrainedModel,
    objective: Objective,
    data: PreferenceData,
    tokenizer: PreTrainedTokenizerBase,
    *,
    arguments: dict[str, Any],
    listen: Callable[[int, int, dict[str, Any]], None] | None = None,
) -> None:
    """AdamW with a short warm-up and a cosine to zero. The order of pairs is decided by the seed alone,
    so it is the same for every objective.

    Args:
        arguments: of `TrainingArguments`; at least its length, batch, rate and seed.
        listen: (step, last step, line), told of every log line.
    """
    usual = {"lr_scheduler_type": "cosine", "warmup_steps": 20, "adam_beta2": 0.98, "weight_decay": 0.0, "max_grad_norm": 1.0}
    quiet = {"save_strategy": "no", "use_cpu": True} | ({} if listen else {"logging_strategy": "no"})
    with tempfile.TemporaryDirectory(prefix="multiref-lab-") as scratch:
        trainer = PreferenceTrainer(
            policy,
            objective,
            args=training_arguments(scratch, usual | quiet | arguments),
            train_dataset=data,
            processing_class=tokenizer,
            tokenisation=Tokenisation(end=False),
            callbacks=[LogLines(listen)] if listen else None,
        )
        silence(trainer)
        trainer.train()
    policy.eval()
