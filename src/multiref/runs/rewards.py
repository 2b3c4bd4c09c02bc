"""Rewards by name: those of a run's file, and of `--reward` on the command line."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from multiref.data.gsm8k import rewards as gsm8k_rewards
from multiref.errors import ConfigError
from multiref.runs.document import Document
from multiref.runs.strict import Strict, one_of
from multiref.training.online import Reward, RewardModel, lexicon_reward

__all__ = ["NamedReward", "RewardSetting", "make_rewards", "read_rewards"]


class NamedReward(Strict):
    """A reward, with its weight in the sum."""

    kind: str
    weight: float = 1.0

    def named(self) -> dict[str, Callable[..., Sequence[float]]]:
        """The functions of prompts and completions, most kinds having one."""
        return {self.kind: self.function()}

    @abstractmethod
    def function(self) -> Callable[..., Sequence[float]]: ...


class ProblemRewards(NamedReward):
    """The five rewards of the paper's script for GSM8K."""

    kind: Literal["gsm8k"]

    def named(self) -> dict[str, Callable[..., Sequence[float]]]:
        return gsm8k_rewards()

    def function(self) -> Callable[..., Sequence[float]]:
        raise NotImplementedError


class LexiconReward(NamedReward):
    """Valence of the words that a lexicon knows."""

    kind: Literal["lexicon"]
    path: str

    def function(self) -> Callable[..., Sequence[float]]:
        return lexicon_reward(self.path)


class ModelReward(NamedReward):
    """A reward model's folder or hub id."""

    kind: Literal["model"]
    path: str

    def function(self) -> Callable[..., Sequence[float]]:
        return RewardModel(self.path)


class LengthReward(NamedReward):
    """−|words − target|/target."""

    kind: Literal["length"]
    target: int = Field(default=50, gt=0)

    def function(self) -> Callable[..., Sequence[float]]:
        return partial(_length, self.target)


if TYPE_CHECKING:
    RewardSetting = NamedReward
else:
    RewardSetting = one_of("kind", [ProblemRewards, LexiconReward, LengthReward, ModelReward])


class _Rewards(Strict):
    rewards: list[RewardSetting] = Field(min_length=1)


def make_rewards(settings: Iterable[NamedReward]) -> list[Reward]:
    """`Reward`s from their settings."""
    return [Reward(function, name, each.weight) for each in settings for name, function in each.named().items()]


def read_rewards(given: Sequence[str], *, answers: bool) -> list[NamedReward]:
    """`lexicon=FILE`, `model=FOLDER`, `length=WORDS`, `gsm8k`, or a YAML file with `rewards:` → settings. ConfigError for what is none of these.

    Args:
        answers: whether the prompts are problems whose answers are known, as gsm8k needs.
    """
    found: list[NamedReward] = []
    for text in given:
        kind, _, value = text.partition("=")
        values: dict[str, Any] = {"kind": kind}
        if kind == "length" and value.isdigit():
            values["target"] = int(value)
        elif kind in ("lexicon", "model") and value:
            values["path"] = value
        elif text.endswith((".yaml", ".yml")):
            document = Document.read(text)
            document.values = {key: value for key, value in document.values.items() if key == "rewards"}
            found += document.validate(_Rewards).rewards
            continue
        elif text != "gsm8k":
            raise ConfigError(
                f"--reward {text}: expected lexicon=FILE, model=FOLDER, length=WORDS, gsm8k, or a YAML file with `rewards:`."
            )
        found += Document({"rewards": [values]}, f"--reward {text}").validate(_Rewards).rewards
    if not answers and any(setting.kind == "gsm8k" for setting in found):
        raise ConfigError("--reward gsm8k: needs each problem's answer; use `multiref evaluate --problems`.")
    return found


def _length(target: int, prompts: Any, completions: Any) -> list[float]:
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [-abs(len(text.split()) - target) / target for text in texts]
