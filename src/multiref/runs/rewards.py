"""Rewards by name: those of a run's file, and of `--reward` on the command line."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from multiref.data.gsm8k import rewards as gsm8k_rewards
from multiref.errors import ConfigError
from multiref.runs.document import Document
from multiref.runs.judges import JudgeSetting
from multiref.runs.python_reward import OwnOrNamed, make_python_reward
from multiref.runs.strict import Strict, one_of
from multiref.training.online import Reward, RewardModel, WinRate, lexicon_reward

__all__ = ["NamedReward", "RewardSetting", "make_rewards", "read_rewards"]


def _gsm8k(weight: float = 1.0) -> list[Reward]:
    """The five rewards of the paper's script for GSM8K, each with this weight in the sum."""
    return [Reward(function, name, weight) for name, function in gsm8k_rewards().items()]


def _lexicon(path: str, weight: float = 1.0) -> list[Reward]:
    """Valence of the words that a lexicon knows."""
    return [Reward(lexicon_reward(path), "lexicon", weight)]


def _model(path: str, weight: float = 1.0) -> list[Reward]:
    """A reward model's folder or hub id."""
    return [Reward(RewardModel(path), "model", weight)]


def _length(target: Annotated[int, Field(gt=0)] = 50, weight: float = 1.0) -> list[Reward]:
    """−|words − target|/target."""

    def length(prompts: Any, completions: Any) -> list[float]:
        texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
        return [-abs(len(text.split()) - target) / target for text in texts]

    return [Reward(length, "length", weight)]


def _win_rate(
    group: int,
    judge: JudgeSetting,
    both_orders: bool = False,
    votes: Annotated[int, Field(ge=1)] = 1,
    weight: float = 1.0,
) -> list[Reward]:
    """The share of its group that a completion wins against, by a judge of two completions (docs/nash.md)."""
    made = WinRate(judge.make().judge, group=group, both_orders=both_orders, votes=votes)
    return [Reward(made, "win_rate", weight)]


class NamedReward(OwnOrNamed[list[Reward]]):
    """A reward by its name."""

    def rewards(self, group: int | None) -> list[Reward]:
        """`Reward`s for groups of this many completions of a prompt. ConfigError for a win rate without a group."""
        if self.kind != "win_rate":
            return self.make()
        if group is None:
            raise ConfigError(
                "win_rate: a policy wins against its own completions half of the time, whatever it is; it is a reward of task: "
                "online alone. Elsewhere take lexicon, model or python."
            )
        return self.make(group=group)


KINDS: dict[str, Callable[..., list[Reward]]] = {
    "gsm8k": _gsm8k,
    "lexicon": _lexicon,
    "length": _length,
    "model": _model,
    "python": make_python_reward,
    "win_rate": _win_rate,
}
if TYPE_CHECKING:
    RewardSetting = NamedReward
else:
    RewardSetting = one_of("kind", KINDS, base=NamedReward, check=False, without={"group"})


class _Rewards(Strict):
    rewards: list[RewardSetting] = Field(min_length=1)


def make_rewards(settings: Iterable[NamedReward], *, group: int | None = None) -> list[Reward]:
    """`Reward`s from their settings, for groups of this many completions of each prompt."""
    return [reward for each in settings for reward in each.rewards(group)]


def read_rewards(given: Sequence[str], *, answers: bool) -> list[NamedReward]:
    """`lexicon=FILE`, `model=FOLDER`, `length=WORDS`, `python=FILE:FUNCTION`, `gsm8k`, or a YAML file with `rewards:`.
    ConfigError for what is none of these.

    Args:
        answers: whether the prompts are problems whose answers are known, as gsm8k needs.
    """
    found: list[NamedReward] = []
    for text in given:
        kind, _, value = text.partition("=")
        values: dict[str, Any] = {"kind": kind}
        if kind == "length" and value.isdecimal() and len(value) < 10:
            values["target"] = int(value)
        elif kind in ("lexicon", "model") and value:
            values["path"] = value
        elif kind == "python" and value.rpartition(":")[0]:
            values["path"], _, values["name"] = value.rpartition(":")
        elif text.endswith((".yaml", ".yml")):
            document = Document.read(text)
            document.values = {key: value for key, value in document.values.items() if key == "rewards"}
            found += document.validate(_Rewards).rewards
            continue
        elif text != "gsm8k":
            raise ConfigError(
                f"--reward {text}: expected lexicon=FILE, model=FOLDER, length=WORDS, python=FILE:FUNCTION, gsm8k, or a "
                "YAML file with `rewards:`."
            )
        found += Document({"rewards": [values]}, f"--reward {text}").validate(_Rewards).rewards
    if not answers and any(setting.kind == "gsm8k" for setting in found):
        raise ConfigError("--reward gsm8k: needs each problem's answer; use `multiref evaluate --problems`.")
    return found
