"""`task: reward` in a run's file: a reward model from preference pairs. What can be written is in `reward_settings.py`, what is done in `reward_execute.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["execute_reward", "is_reward"]


def is_reward(config: Mapping[str, Any]) -> bool:
    """Whether a run's file asks for a reward model."""
    return config.get("task") == "reward"


def execute_reward(config: Mapping[str, Any], where: str, *, say: Callable[[str], None] = print) -> None:
    """Do the run, or go on with it: config.yaml, metrics.jsonl, checkpoints/, model/ with its card, report.html."""
    from multiref.runs.config import build
    from multiref.runs.reward_execute import run_reward
    from multiref.runs.reward_settings import RewardRun
    from multiref.training.arguments import quiet

    run = build(RewardRun, config, where)
    quiet()
    run_reward(run, say=say)
