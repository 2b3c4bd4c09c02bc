"""Rewards: functions of prompts and completions, several with weights; what a step's completions earn,
and what happens when one misbehaves."""

import asyncio
import contextlib
import copy
import inspect
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from multiref._awaited import wait_for
from multiref._files import read_text
from multiref.data.text import words
from multiref.errors import ArgumentError, DataError, ModelError, MultirefWarning
from multiref.models.adapters import on_base, put_adapter
from multiref.models.chat import Chat
from multiref.models.checkpoint import load_whole
from multiref.models.fingerprint import model_weights_fingerprint
from multiref.models.folders import file_shapes, read_object
from multiref.models.loading import as_device, as_dtype, load_tokenizer
from multiref.models.spec import TOKENISATION, ModelSpec
from multiref.references.rollouts import Rollout
from multiref.report.shown import excerpt
from multiref.training.adapters import MARK
from multiref.training.reward.model import rewards_of
from multiref.training.reward.rows import rewards_of_rows

T = TypeVar("T")


@dataclass(frozen=True)
class Reward:
    """A reward function under its name, with its weight in the sum.

    function(prompts, completions, **columns) → N numbers, as TRL calls its reward functions:
    texts (strings or messages), and each column of the prompts' rows as a list of N. It may be async, and say None of a
    completion to which it does not apply. A function that takes no **columns gets only those it names.
    """

    function: Callable[..., Any]
    name: str = ""
    weight: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.weight, bool) or not isinstance(self.weight, int | float) or not math.isfinite(self.weight):
            raise ArgumentError(f"weight: found {self.weight!r} of the reward {self.name!r}, expected a finite number.")

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Sequence[Any]]) -> Tensor:
        """[N] float64, NaN where the function said None: it does not apply. ArgumentError, naming the function and the row,
        where it raises, returns another length or what is no finite number."""
        return self.read(self.begin(prompts, completions, columns), completions)

    def begin(self, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Sequence[Any]]) -> Any:
        """What the function returns: values, or of an async one what is to be awaited. It has lists and messages of its own:
        what it does to them nobody else sees."""
        texts = {"prompts": _own(prompts), "completions": _own(completions)}
        try:
            own = {name: list(column) for name, column in read_of(self.function, columns).items()}
            values = self.function(**texts, **own)
            return list(values) if inspect.isgenerator(values) else values
        except Exception as error:
            raise self.raised(error, completions) from error

    def raised(self, error: BaseException, completions: Sequence[Any]) -> ArgumentError:
        """What is said where the function raises."""
        return ArgumentError(
            f"The reward {self.name!r} raised {type(error).__name__}: {error}. It was given {len(completions)} "
            f"completions, the first {_shown(completions[0])}. The last checkpoint is kept; mend the function and run again."
        )

    def read(self, values: Any, completions: Sequence[Any]) -> Tensor:
        """[N] float64 of what the function returned: a list, a tensor or an array of numbers, or of what holds one."""
        try:
            if isinstance(values, (str, bytes, Mapping, set)):
                raise TypeError
            found = list(values)
        except TypeError:  # a number, a text, a tensor without an axis
            raise ArgumentError(
                f"The reward {self.name!r} returned {values!r}, expected {len(completions)} numbers, one for each completion. "
                "The last checkpoint is kept."
            ) from None
        if len(found) != len(completions):
            raise ArgumentError(
                f"The reward {self.name!r} returned {len(found)} numbers for {len(completions)} completions; expected one "
                "each. The last checkpoint is kept."
            )
        return torch.tensor([self._number(*each) for each in enumerate(zip(found, completions))], dtype=torch.float64)

    def _number(self, row: int, given: tuple[Any, Any]) -> float:
        value, completion = given
        if value is None or value is np.ma.masked:
            return math.nan
        alone: Any = value
        while getattr(alone, "shape", None) in ((), (1,)) or isinstance(alone, np.generic):
            alone = alone.item()  # numpy's scalars, tensors and arrays of one number
        if isinstance(alone, int | float | Decimal | Fraction):
            with contextlib.suppress(OverflowError, ValueError):  # no float is so large; a Decimal that is not to be read
                if math.isfinite(number := float(alone)):
                    return number
        raise ArgumentError(
            f"The reward {self.name!r} is {value!r} for completion {row + 1}, {_shown(completion)}; expected a finite number, "
            "or None where it does not apply. The last checkpoint is kept."
        )


def _own(texts: Sequence[Any]) -> list[Any]:
    """Texts, and copies of messages."""
    return [text if isinstance(text, str) else copy.deepcopy(text) for text in texts]


class RewardModel:
    """A sequence classifier with one output as a reward: r(x, y) is its logit on prompt and completion,
    encoded as `RewardTrainer` did where that made it.

    Args:
        path_or_id: a model folder or hub id of a sequence classification model (num_labels = 1, as TRL's RewardTrainer writes).
        batch: texts in one pass.
    """

    def __init__(self, path_or_id: str, *, device: Any = None, batch: int = 16, dtype: str = "float32") -> None:
        import transformers

        kind, spec = transformers.AutoModelForSequenceClassification, on_base(ModelSpec(path_or_id))
        heads = ("score.*", "classifier.*") if spec.adapter else ()  # an adapter brings its own
        model, made = load_whole(kind, spec, creates=heads, num_labels=1, dtype=as_dtype(dtype))
        if spec.adapter:
            model = put_adapter(model, spec.adapter)
            if (said := Path(spec.adapter) / f"{MARK}.json").is_file():
                setattr(model.config, MARK, read_object(said))
            if made and not any(".score." in key or ".classifier." in key for key in file_shapes(Path(spec.adapter))):
                raise ModelError(f"{path_or_id}: neither the adapter nor its base has the reward's head ({made[0]}).")
        self.tokenizer = load_tokenizer(path_or_id)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        model.config.pad_token_id = self.tokenizer.pad_token_id
        self.model, self.batch = model.to(as_device(device)).eval(), batch
        self.__name__ = str(path_or_id).rstrip("/").rpartition("/")[2]

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
        if getattr(self.model.config, MARK, None) is not None:
            return rewards_of(self.model, self.tokenizer, prompts, completions, batch=self.batch).tolist()
        texts = [
            p + c if isinstance(p, str) else Chat.of(self.tokenizer, p, TOKENISATION).write([*p, *c])
            for p, c in zip(prompts, completions)
        ]
        # a template writes the start token itself
        rows = [self.tokenizer(text, add_special_tokens=isinstance(p, str))["input_ids"] for text, p in zip(texts, prompts)]
        return rewards_of_rows(self.model, rows, int(self.tokenizer.pad_token_id), batch=self.batch).double().tolist()


def judged_by(asked: Any) -> dict[str, Any]:
    """What a reward, a judge or an oracle goes by: how its judge is asked, and a digest of its `RewardModel`, if it is ours."""
    found: dict[str, Any] = {}
    for _ in range(8):  # a reward's function, which asks a judge, which …
        numbers = ((name, getattr(asked, name, None)) for name in ("temperature", "votes", "both_orders"))
        found |= {name: value for name, value in numbers if isinstance(value, int | float)}
        if isinstance(asked, RewardModel):
            return found | {"model": model_weights_fingerprint(asked.model)}
        asked = next((getattr(asked, name) for name in ("function", "judge", "oracle", "reward") if hasattr(asked, name)), None)
    return found


def as_rewards(rewards: Any) -> tuple[Reward, ...]:
    """A function, a list of functions or `Reward`s, or {name: function or Reward} → `Reward`s with different names."""
    if not isinstance(rewards, Mapping | Sequence):
        rewards = [rewards]
    made = []
    for name, given in rewards.items() if isinstance(rewards, Mapping) else [("", each) for each in rewards]:
        reward = given if isinstance(given, Reward) else Reward(given)
        if not callable(reward.function):
            raise ArgumentError(f"rewards: expected functions of prompts and completions, found {reward.function!r}.")
        made.append(replace(reward, name=name or reward.name or getattr(reward.function, "__name__", "reward")))
    names = [reward.name for reward in made]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ArgumentError(f"rewards: two are called {repeated[0]!r}; give them different names as {{name: function}}.")
    return tuple(made)


def total_reward(
    rewards: Sequence[Reward], prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Sequence[Any]]
) -> tuple[Tensor, dict[str, Tensor]]:
    """([N] weighted sum, {name: [N]}), float64. No reward at all is zero: distillation.

    A function that says None of a completion does not apply to it: NaN in its own column, and left out of that sum. Async
    functions are awaited together. ArgumentError for a completion to which none applies.
    """
    begun = _awaited(rewards, [reward.begin(prompts, completions, columns) for reward in rewards], completions)
    each = {reward.name: reward.read(values, completions) for reward, values in zip(rewards, begun)}
    zero = torch.zeros(len(completions), dtype=torch.float64)
    if rewards and bool((none := torch.stack(list(each.values())).isnan().all(0)).any()):
        row = int(none.nonzero()[0])
        raise ArgumentError(
            f"rewards: {', '.join(each)} all say None of completion {row + 1}, {_shown(completions[row])}, after the prompt "
            f"{_shown(prompts[row])}; expected a number from at least one."
        )
    return sum((reward.weight * each[reward.name].nan_to_num(0.0) for reward in rewards), zero), each


def _awaited(rewards: Sequence[Reward], begun: Sequence[Any], completions: Sequence[Any]) -> list[Any]:
    """What functions returned, the async ones' awaited side by side."""

    async def one(reward: Reward, values: Any) -> Any:
        try:
            return await values if inspect.isawaitable(values) else values
        except Exception as error:
            raise reward.raised(error, completions) from error

    async def together() -> list[Any]:
        return await asyncio.gather(*map(one, rewards, begun))

    return wait_for(together()) if any(map(inspect.isawaitable, begun)) else list(begun)


def reward_rollouts(
    rewards: Sequence[Reward], rows: Sequence[Mapping[str, Any]], rollouts: Sequence[Rollout], group: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """([N] weighted sum, {name: [N]}) of `group` completions of each row; columns but `prompt` and `weights` go to the
    functions, and `ended` (whether a completion is whole) and `completion_ids`.

    ArgumentError where there are not as many completions, or one has no token.
    """
    completions = [completion for rollout in rollouts for completion in rollout.completions]
    empty = any(not ids for rollout in rollouts for ids in rollout.completion_ids)
    if len(rollouts) != len(rows) or any(len(rollout.completions) != group for rollout in rollouts) or empty:
        raise ArgumentError(
            f"The sampler gave {[len(rollout.completions) for rollout in rollouts][:8]} completions for {len(rows)} prompts"
            f"{', some of no token' if empty else ''}; expected {group} each of at least one token."
        )
    prompts = [rollout.prompt for rollout in rollouts for _ in rollout.completions]
    ids = [list(each) for rollout in rollouts for each in rollout.completion_ids]  # by the name that TRL has for them
    ended = [end for rollout in rollouts for end in rollout.ended]
    columns: dict[str, list[Any]] = {"ended": ended, "completion_ids": ids, **columns_of(rows, group)}
    return total_reward(rewards, prompts, completions, columns)


def columns_of(rows: Sequence[Mapping[str, Any]], times: int) -> dict[str, list[Any]]:
    """What rows hand to reward functions beside their prompts, by name, each so many times in a row."""
    names = sorted({name for row in rows for name in row} - {"prompt", "weights"})
    return {name: [row.get(name) for row in rows for _ in range(times)] for name in names}


def warn_of_odd_completions(rollouts: Sequence[Rollout], *, ends: bool, first: bool, limit: int) -> None:
    """A warning where every completion is empty text, or, at the first step of a policy that can end, none ended."""
    completions = [completion for rollout in rollouts for completion in rollout.completions]
    if not any(words(completion).strip() for completion in completions):
        warnings.warn(
            "Every completion of this step is empty text: the policy ends at once. Look at its prompts and chat template.",
            MultirefWarning,
            stacklevel=3,
        )
    if first and ends and not any(end for rollout in rollouts for end in rollout.ended):
        warnings.warn(
            f"Every completion of the first step was cut at max_new_tokens = {limit}: none ended. They count as they are, "
            "cut; raise max_new_tokens if answers should be whole.",
            MultirefWarning,
            stacklevel=3,
        )


def lexicon_reward(path: str | Path) -> Callable[[Sequence[Any], Sequence[Any]], list[float]]:
    """(prompts, completions) → Σ value(word) / √words, from a file of lines `word<tab>value[<tab>…]` (AFINN, VADER).

    Raises:
        DataError: a file that cannot be read, or a line without a number.
    """
    values: dict[str, float] = {}
    lines = read_text(path, "a lexicon of lines word<tab>value").splitlines()
    for row, line in enumerate(lines, start=1):
        parts = line.split("\t")
        if not line.strip():
            continue
        try:
            values[parts[0].strip().lower()] = value = float(parts[1])
            if not math.isfinite(value):
                raise ValueError("no number that words could add up to")
        except (IndexError, ValueError):
            raise DataError(f"{path}:{row}: found {line[:60]!r}, expected word<tab>value, a finite number") from None

    def reward(prompts: Sequence[Any], completions: Sequence[Any]) -> list[float]:
        found = [re.findall(r"[a-z']+", words(completion).lower()) for completion in completions]
        return [sum(values.get(word, 0.0) for word in each) / max(len(each), 1) ** 0.5 for each in found]

    return reward


def named_by(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    """The parameters of a reward function; None where it does not say."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None


def read_of(function: Callable[..., Any], columns: Mapping[str, T], *, unread: str = "") -> dict[str, T]:
    """Those of the columns that a reward function takes. unread: a name by which `**name` says that it reads none of them."""
    named = named_by(function)
    if named is None or any(each.kind is inspect.Parameter.VAR_KEYWORD and each.name != unread for each in named.values()):
        return dict(columns)
    return {name: values for name, values in columns.items() if name in named}


def _shown(completion: Any, width: int = 200) -> str:
    return excerpt(words(completion), width)
