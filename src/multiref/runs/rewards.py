"""Rewards and judges by name: those of a run's file, of `--reward` on the command line, and functions of one's own, in a Python
file that a run's file names, run as it was when the run began."""

import hashlib
import sys
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import Field, model_validator

from multiref._files import MIB, Unpacked
from multiref.data.gsm8k import rewards as gsm8k_rewards
from multiref.data.text import words
from multiref.errors import ConfigError
from multiref.runs.document import Document
from multiref.runs.strict import Arguments, ReadAs, Strict, one_of
from multiref.training.iterative import FunctionOracle, Oracle, TextWorld
from multiref.training.online import Judge, Reward, RewardModel, WinRate, judge_by_reward, lexicon_reward

__all__ = ["JUDGES", "JudgeSetting", "Judged", "NamedReward", "OwnOrNamed", "RewardSetting", "make_rewards", "read_rewards"]

Temperature = Annotated[float, Field(gt=0)]
T = TypeVar("T")


# ---- a function of one's own ----


class OwnOrNamed(Arguments[T]):
    """What a file names by its kind, or takes from a Python file. What that or a lexicon holds is part of the settings, and so
    of the run's identity."""

    kind: str

    @model_validator(mode="before")
    @classmethod
    def _hashed(cls, values: Any) -> Any:
        kind = values.get("kind") if isinstance(values, dict) else None
        if kind not in ("python", "lexicon") or not isinstance(values.get("path"), str):
            return values
        try:
            found = hashlib.sha256(_content(values["path"])).hexdigest()
        except ConfigError as error:
            if kind == "lexicon":
                return values  # who reads it says what is wrong
            raise ValueError(f"path: {error}") from None
        if values.get("sha256") not in (None, found):
            raise ValueError(f"sha256: {values['path']} has changed: expected {values['sha256']}, found {found}.")
        return {**values, "sha256": found}


def load_function(path: str, name: str, sha256: str | None = None) -> Any:
    """The function `name` of the file, which runs with your rights, and only because the run's file names it.

    Args:
        sha256: of the file, filled in by itself; a file that changed is another run.

    Raises:
        ConfigError: a file that changed, cannot be run, or has no such function.
    """
    content = _content(path)
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and sha256 != found:
        raise ConfigError(
            f"{path} has changed: its sha256 is {found[:12]}…, and was {sha256[:12]}… when the run was read. "
            "Put the file back as it was, or begin a new run (another `output`)."
        )
    module = types.ModuleType(f"multiref_own_{found[:12]}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # what a dataclass in it looks itself up by
    try:
        exec(compile(content, path, "exec"), module.__dict__)
    except Exception as wrong:
        sys.modules.pop(module.__name__)
        raise ConfigError(
            f"{path} cannot be run: {type(wrong).__name__}: {wrong}. Mend it: `python FILE` has to run without an error."
        ) from wrong
    function: Any = getattr(module, name, None)
    if not callable(function):
        known = sorted(each for each, value in vars(module).items() if isinstance(value, types.FunctionType))
        raise ConfigError(f"{path} has no function {name!r}; found {', '.join(known) or 'none'}.")
    return function


def _content(path: str) -> bytes:
    with Unpacked(path, "a Python file with the function", largest=64 * MIB, error=ConfigError) as file:
        return file.rest()


# ---- judges: who answers which of two completions is better, for win rates and for labels that are bought ----


class Judged(NamedTuple):
    """A judge of two completions; and the reward behind it, where there is one, to be reported and never shown to a method."""

    judge: Judge
    hidden: Callable[..., Any] | None = None

    def oracle(self, world: TextWorld) -> Oracle:
        """The judge of a world that turns ids into texts."""
        return FunctionOracle(self.judge, world.decode)


def _judge_by_lexicon(path: str, temperature: Temperature = 1.0, sha256: str | None = None) -> Judged:
    """Bradley–Terry chances of a lexicon's reward at `temperature`."""
    reward = lexicon_reward(path)
    return Judged(judge_by_reward(reward, temperature=temperature), reward)


def _judge_by_model(path: str, temperature: Temperature = 1.0) -> Judged:
    """Bradley–Terry chances of a reward model at `temperature`."""
    reward = RewardModel(path)
    return Judged(judge_by_reward(reward, temperature=temperature), reward)


def _own_judge(path: str, name: str, sha256: str | None = None) -> Judged:
    """A function of your own in the file `path`: (prompts, first, second) → the chance, in [0, 1], that each first is
    preferred."""
    return Judged(load_function(path, name, sha256))


JUDGES: dict[str, Callable[..., Judged]] = {"lexicon": _judge_by_lexicon, "reward_model": _judge_by_model, "python": _own_judge}
JudgeSetting = Annotated[OwnOrNamed[Judged], ReadAs(one_of("kind", JUDGES, base=OwnOrNamed, check=False))]


# ---- rewards ----


def _gsm8k(weight: float = 1.0) -> list[Reward]:
    """The five rewards of the paper's script for GSM8K, each with this weight in the sum."""
    return [Reward(function, name, weight) for name, function in gsm8k_rewards().items()]


def _lexicon(path: str, weight: float = 1.0, sha256: str | None = None) -> list[Reward]:
    """Valence of the words that a lexicon knows."""
    return [Reward(lexicon_reward(path), "lexicon", weight)]


def _model(path: str, weight: float = 1.0) -> list[Reward]:
    """A reward model's folder or hub id."""
    return [Reward(RewardModel(path), "model", weight)]


def _length(target: Annotated[int, Field(gt=0)] = 50, weight: float = 1.0) -> list[Reward]:
    """−|words − target|/target."""

    def length(prompts: Any, completions: Any) -> list[float]:
        return [-abs(len(words(each).split()) - target) / target for each in completions]

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


def _own_reward(path: str, name: str, weight: float = 1.0, sha256: str | None = None) -> list[Reward]:
    """The function `name` of the file: (prompts, completions, **columns of the prompts' rows) → a number for each one."""
    return [Reward(load_function(path, name, sha256), name, weight)]


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
    "python": _own_reward,
    "win_rate": _win_rate,
}
RewardSetting = Annotated[NamedReward, ReadAs(one_of("kind", KINDS, base=NamedReward, check=False, without={"group"}))]


class _Rewards(Strict):
    rewards: list[RewardSetting] = Field(min_length=1)


def make_rewards(settings: Iterable[NamedReward], *, group: int | None = None) -> list[Reward]:
    """`Reward`s from their settings, for groups of this many completions of each prompt; a second one of a name is name-2."""
    made = [reward for each in settings for reward in each.rewards(group)]
    names = [reward.name for reward in made]
    count = [names[: place + 1].count(name) for place, name in enumerate(names)]
    return [reward if n == 1 else replace(reward, name=f"{reward.name}-{n}") for reward, n in zip(made, count)]


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
