"""Judges by name: who answers which of two completions is better, for win rates and for labels that are bought."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field

from multiref.runs.python_reward import OwnOrNamed, load_function
from multiref.runs.strict import one_of
from multiref.training.iterative import FunctionOracle, Oracle, TextWorld
from multiref.training.online import Judge, RewardModel, judge_by_reward, lexicon_reward

__all__ = ["JUDGES", "JudgeSetting", "Judged"]

Temperature = Annotated[float, Field(gt=0)]


class Judged(NamedTuple):
    """A judge of two completions; and the reward behind it, where there is one, to be reported and never shown to a method."""

    judge: Judge
    hidden: Callable[..., Any] | None = None

    def oracle(self, world: TextWorld) -> Oracle:
        """The judge of a world that turns ids into texts."""
        return FunctionOracle(self.judge, world.decode)


def _lexicon(path: str, temperature: Temperature = 1.0) -> Judged:
    """Bradley–Terry chances of a lexicon's reward at `temperature`."""
    reward = lexicon_reward(path)
    return Judged(judge_by_reward(reward, temperature=temperature), reward)


def _reward_model(path: str, temperature: Temperature = 1.0) -> Judged:
    """Bradley–Terry chances of a reward model at `temperature`."""
    reward = RewardModel(path)
    return Judged(judge_by_reward(reward, temperature=temperature), reward)


def _python(path: str, name: str, sha256: str | None = None) -> Judged:
    """A function of your own in the file `path`: (prompts, first, second) → the chance, in [0, 1], that each first is
    preferred."""
    return Judged(load_function(path, name, sha256))


JUDGES: dict[str, Callable[..., Judged]] = {"lexicon": _lexicon, "reward_model": _reward_model, "python": _python}
if TYPE_CHECKING:
    JudgeSetting = OwnOrNamed[Judged]
else:
    JudgeSetting = one_of("kind", JUDGES, base=OwnOrNamed, check=False)
