"""Rewards by name: those of a run's file and of `multiref evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from multiref.runs.settings_online import RewardSetting
from multiref.errors import ConfigError

__all__ = ["made_rewards"]


def made_rewards(settings: Sequence[RewardSetting]) -> list[Any]:
    """`Reward`s from their settings. ConfigError for a kind that is none, or one without its file."""
    from multiref.training.online import Reward, RewardModel

    made: list[Any] = []
    for setting in settings:
        if setting.kind == "gsm8k":
            from multiref.data.gsm8k import rewards

            made += [Reward(function, name, setting.weight) for name, function in rewards().items()]
        elif setting.kind == "length":
            made.append(Reward(_length(setting.target), "length", setting.weight))
        elif setting.kind in ("lexicon", "model"):
            if setting.path is None:
                raise ConfigError(f"rewards: {setting.kind} needs a path.")
            from multiref.training.online import lexicon_reward

            function: Any = lexicon_reward(setting.path) if setting.kind == "lexicon" else RewardModel(setting.path)
            made.append(Reward(function, setting.kind, setting.weight))
        else:
            raise ConfigError(f"rewards.kind: found {setting.kind!r}, expected gsm8k, lexicon, length or model.")
    return made


def _length(target: int) -> Callable[..., list[float]]:
    def length(prompts: Any, completions: Any) -> list[float]:
        texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
        return [-abs(len(text.split()) - target) / target for text in texts]

    return length
