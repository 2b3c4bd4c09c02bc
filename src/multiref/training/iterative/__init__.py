"""Online alignment with labels as the budget: the bilevel trainer and its iterative peers, on whatever is a `Task`; `text_task` makes one of Hugging Face models.

`train(task, method, plan)` is the one loop; a method says which pairs to have labelled and how to learn from them; a task says what everything is.
"""

import importlib
from typing import Any

_HOMES = {
    "Task": "task",
    "Oracle": "task",
    "Policy": "task",
    "RewardModel": "task",
    "Method": "loop",
    "Plan": "loop",
    "train": "loop",
    "History": "loop",
    "State": "state",
    "Bilevel": "bilevel",
    "BilevelTrainer": "bilevel",
    "OfflineDPO": "direct",
    "OnlineDPO": "direct",
    "XPO": "direct",
    "SAIL": "sail",
    "GSHF": "reward_then_policy",
    "Iterative": "reward_then_policy",
    "TwoStage": "reward_then_policy",
    "METHODS": "methods",
    "method_named": "methods",
    "FunctionOracle": "oracles",
    "RewardOracle": "oracles",
    "HumanLabels": "human_labels",
    "TextPolicy": "text",
    "TextReward": "text",
    "TextWorld": "text",
    "text_task": "text_setup",
    "save_policy": "text_setup",
    "LabelsLate": "oracles",
    "Diverged": "steps",
    "improve": "steps",
    "begin": "loop",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Names are imported when first used, so that `import multiref` does not load transformers."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
