"""One preference run of a cell, the same for every task: the policy in, the policy trained in place."""

from __future__ import annotations

import tempfile
from typing import Any

from multiref.models import Tokenisation
from multiref.training.arguments import silence, training_arguments
from multiref.training.dataset import PreferenceData
from multiref.training.preference import PreferenceTrainer
from multiref_lab.frontier.grid import Cell
from multiref_lab.frontier.rules import objective
from multiref_lab.frontier.settings import Offline

__all__ = ["train_on_pairs"]


def train_on_pairs(policy: Any, data: PreferenceData, tokenizer: Any, cell: Cell, how: Offline) -> None:
    """`how.steps` steps of the cell's objective; the order of pairs is decided by the seed alone, so it is the same for every rule."""
    with tempfile.TemporaryDirectory(prefix="multiref-frontier-") as scratch:
        given = {
            "per_device_train_batch_size": how.pairs_per_step,
            "max_steps": how.steps,
            "learning_rate": how.learning_rate,
            "lr_scheduler_type": "cosine",
            "warmup_steps": min(20, how.steps // 4),
            "adam_beta2": 0.98,
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "logging_strategy": "no",
            "save_strategy": "no",
            "use_cpu": True,
            "seed": cell.seed,
        }
        trainer = PreferenceTrainer(
            policy,
            objective(cell.rule, cell.weights, cell.beta),
            args=training_arguments(scratch, given),
            train_dataset=data,
            processing_class=tokenizer,
            tokenisation=Tokenisation(end=False),
        )
        silence(trainer)
        trainer.train()
    policy.eval()
