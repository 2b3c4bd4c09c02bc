"""What runs on preference pairs share: which pairs, which are held out, which are too long, and the `transformers.Trainer`
around them."""

import dataclasses
import enum
import os
import types
import typing
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, field_serializer, model_validator

from multiref.data import Pair, Selection, read
from multiref.data.privacy import check_marks
from multiref.data.reading import SKIPPED
from multiref.data.spooled import select
from multiref.errors import ConfigError, MultirefNotice, MultirefWarning
from multiref.models import Tokenisation, encode_many
from multiref.references.keys import KeyIndex, as_bytes, content_keys, side_keys
from multiref.report import public
from multiref.runs.base import BaseRun, Facts, Say
from multiref.runs.folder import RunFolder
from multiref.runs.strict import Arguments, ReadAs, Strict, arguments_of
from multiref.training.adapters import save_whole
from multiref.training.arguments import DEFAULTS, LogLines, TrainingArguments, silence, training_arguments
from multiref.training.dataset import PART
from multiref.training.honoured import check_arguments
from multiref.training.saved import Kept, rows_of_pairs

Sides = tuple[Sequence[Pair], Sequence[Pair]]
CURVES: dict[str, Sequence[str]] = {
    "loss": ("loss", "eval_loss"),
    "reward margin": ("rewards/margins", "eval_rewards/margins"),
    "accuracy": ("rewards/accuracies", "eval_rewards/accuracies"),
}
Columns = dict[str, str | int | float | bool]


class DataSource(Strict):
    """Preference pairs. path: a file, a folder of files or of `save_to_disk`, a URL, or the id of a hub data set.
    The other keys: see `multiref.data.Selection`."""

    SHORT: ClassVar = "path"
    path: str
    name: str | None = None
    split: str | None = None
    columns: Columns = Field(default_factory=dict)
    rankings: Literal["ends", "all"] = "ends"
    bad_rows: Literal["refuse", "skip"] = "refuse"
    limit: int | None = None

    @model_validator(mode="after")
    def _columns(self) -> Self:
        self.selection()
        return self

    def selection(self) -> Selection:
        """What is read, and how."""
        return Selection(**self.model_dump(include={each.name for each in dataclasses.fields(Selection)}))


class Evaluation(DataSource):
    """Held-out pairs: as `data` has them, or a fraction of the training data, split by prompt: by `split_seed`, so that runs
    with other seeds hold out the same."""

    path: str | None = None  # type: ignore[assignment]
    fraction: float | None = Field(default=None, gt=0, lt=1)
    split_seed: int = 42

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.path is None) == (self.fraction is None):
            raise ValueError("expected a path or a fraction, one of them.")
        plain = Evaluation.model_construct()
        read = [key for key in DataSource.model_fields if getattr(self, key) != getattr(plain, key)]
        if self.path is None and read:
            raise ValueError(
                f"{read[0]}: a fraction is of the pairs of `data`, as they are read there; leave it out, or give a path."
            )
        return self


def _arguments() -> type[Arguments[TrainingArguments]]:
    """transformers' arguments as far as YAML has their types; an enumeration by its names, without the text that stands beside
    it there."""
    made = arguments_of(
        TrainingArguments,
        check=False,
        only=_plain,
        defaults=DEFAULTS,
        moved={
            "output_dir": "the run's folder is `output`; remove this key.",
            "report_to": "every task has it: write it beside `output`.",
            "push_to_hub": "every task has it: write push_to_hub: owner/name beside `output`.",
        },
    )
    made.__doc__ = "Arguments of `transformers.TrainingArguments`."
    return made


def _plain(hint: Any) -> Any:
    """The type without what YAML cannot hold; None where nothing is left."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        arms = [arm for arm in map(_plain, typing.get_args(hint)) if arm is not None]
        if any(isinstance(arm, type) and issubclass(arm, enum.Enum) for arm in arms):
            arms = [arm for arm in arms if arm is not str]
        return typing.Union[tuple(arms)] if arms else None  # noqa: UP007
    origin = typing.get_origin(hint) or hint
    named = isinstance(origin, type) and (
        issubclass(origin, enum.Enum) or origin in (str, int, float, bool, list, dict, type(None))
    )
    return hint if named or origin is Literal else None


TrainingSetting = Annotated[Arguments[TrainingArguments], ReadAs(_arguments())]


class Privacy(Strict):
    """What randomised response did to the labels of the data, before: `data.privatise(pairs, epsilon)`."""

    epsilon: float = Field(gt=0, allow_inf_nan=False)


class PairsRun(BaseRun):
    """A run on preference pairs.

    data, evaluation: pairs to train on, and held out. training: arguments of `transformers.TrainingArguments`.
    privacy: {epsilon}: the labels of `data` are private already (docs/private-preferences.md); the loss then takes their flips
    into account. The run flips nothing. Data that is marked as private is refused without it.
    too_long: what becomes of pairs that do not fit `tokenisation.max_length` or a context: left out, kept (cut) or refused.
    """

    MOVED: ClassVar = {
        key: f"it is a part of tokenisation: write tokenisation: {{{key}: …}}." for key in ("end", "max_length", "truncation")
    }

    data: DataSource
    evaluation: Evaluation | None = None
    training: TrainingSetting = Field(default={}, validate_default=True)
    tokenisation: Tokenisation = Tokenisation()
    too_long: Literal["drop", "keep", "error"] = "drop"
    privacy: Privacy | None = None

    @field_serializer("training")
    def _as_given(self, training: TrainingSetting) -> dict[str, Any]:
        return training.model_dump(mode="json", exclude_unset=True)

    def arguments(self) -> TrainingArguments:
        """transformers' arguments. ConfigError for what they do not take."""
        given = self.training.given()
        if self.evaluation is not None:
            given = {"eval_strategy": "epoch", **given}
        given = computed_in_bf16(given)
        try:
            made = training_arguments(str(Path(self.output) / "checkpoints"), given)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", MultirefNotice)  # the trainer says them
                check_arguments(made)
        except (TypeError, ValueError, ImportError) as error:
            raise ConfigError(f"training: {error}") from None
        if self.evaluation is None and made.eval_strategy != "no":
            raise ConfigError("training.eval_strategy: there is nothing to evaluate on; add evaluation: {fraction: 0.05}.")
        if made.save_strategy == "steps" and made.logging_strategy == "steps" and made.save_steps % made.logging_steps:
            warnings.warn(
                f"training: save_steps {made.save_steps} is no multiple of logging_steps {made.logging_steps}, "
                "so the first line after a restart averages over fewer steps than an uninterrupted run's.",
                MultirefWarning,
                stacklevel=2,
            )
        return made

    def read(self, folder: RunFolder | None = None, say: Say | None = None) -> Sides:
        """Pairs to train on, and held out. Rows that are skipped go to the folder's skipped.jsonl."""
        under = folder.path if folder is not None and folder.main else None
        spool = None if folder is None else folder.path
        train = self._pairs(self.data, under and under / SKIPPED, say, spool)
        held_out: Sequence[Pair] = []
        epsilon = None if self.privacy is None else self.privacy.epsilon
        check_marks(train, epsilon, public(self.data.path))
        if self.evaluation is not None and self.evaluation.path is not None:
            held_out = self._pairs(self.evaluation, under and under / f"evaluation-{SKIPPED}", say, spool)
            check_marks(held_out, epsilon, "evaluation", all_private=False)  # clean labels are good to look at
            _warn_of_overlap(train, held_out)
        elif self.evaluation is not None and self.evaluation.fraction is not None:
            train, held_out = _split(train, self.evaluation.fraction, self.evaluation.split_seed)
        return train, held_out

    def _pairs(self, data: DataSource, skipped: Path | None, say: Say | None, spool: Path | None) -> Sequence[Pair]:
        withhold = self.privacy is not None
        return read(str(data.path), data.selection(), skipped=skipped, say=say, spool=spool, withhold=withhold).pairs

    def ready(self) -> Callable[[RunFolder, Say], "TrainerJob"]:
        arguments = self.arguments()
        return lambda folder, say: self.job(folder, arguments, say)

    @abstractmethod
    def job(self, folder: RunFolder, arguments: TrainingArguments, say: Say) -> "TrainerJob":
        """The trainer on its pairs."""

    def data_words(self, pairs: int, held_out: int, folder: RunFolder) -> str:
        """What it was trained on, for card and page."""
        counts = [f"{pairs:,} pairs", f"{held_out:,} held out"]
        for name in (SKIPPED, f"evaluation-{SKIPPED}"):
            if (folder.path / name).exists():
                counts.append(f"{len((folder.path / name).read_bytes().splitlines()):,} bad rows left out, see {name}")
        which = "".join(f", {key} {value}" for key in ("name", "split") if (value := getattr(self.data, key)))
        return f"{public(self.data.path)}{which} ({', '.join(counts)})"

    def fitting(
        self, pairs: Sequence[Pair], tokenizer: Any, tokenisation: Tokenisation, say: Say, under: str = ""
    ) -> Sequence[Pair]:
        """Pairs that the context of a model, the policy or a reference, holds whole; or as `too_long` says."""
        limit = tokenisation.max_length
        if not pairs or limit is None or self.too_long == "keep":
            return pairs
        fits, whole = np.zeros(len(pairs), bool), replace(tokenisation, max_length=None)
        for start in range(0, len(pairs), PART):
            part = pairs[start : start + PART]
            items = [(pair.prompt, (pair.chosen, pair.rejected)) for pair in part]
            encoded = encode_many(tokenizer, items, whole, origins=[pair.origin for pair in part])
            fits[start : start + PART] = [len(e.prompt_ids) + max(map(len, e.completions)) <= limit for e in encoded]
        return self.kept(pairs, fits, f"longer than {limit} tokens{under}", say)

    def kept(self, pairs: Sequence[Pair], fits: np.ndarray, why: str, say: Say) -> Sequence[Pair]:
        """The pairs that fit. ConfigError where none does, or `too_long` is error."""
        if fits.all():
            return pairs
        first, count = pairs[int(fits.argmin())].origin, int((~fits).sum())
        if self.too_long == "error" or not fits.any():
            raise ConfigError(
                f"tokenisation.max_length: {count} of {len(pairs)} pairs are {why}, the first {first}. "
                "Raise max_length, use a model with a longer context, or set too_long to drop."
            )
        say(f"Left out {count:,} of {len(pairs):,} pairs that are {why} (the first: {first}).")
        return select(pairs, np.flatnonzero(fits))


class TrainerJob:
    """A `transformers.Trainer` as a job: `facts` of what it did, once it is done."""

    rewards: ClassVar[bool] = False  # what its model says of a text

    def __init__(self, trainer: Any, facts: Callable[[], Facts]) -> None:
        self.trainer: Any = trainer
        self.facts: Any = facts
        silence(trainer)

    def train(self, checkpoint: Path | None) -> None:
        self.trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    def finish(self) -> tuple[Facts, Callable[[Path], None]]:
        self.conclude()
        trainer = self.trainer
        trainer.accelerator.wait_for_everyone()
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped) if trainer.args.world_size > 1 else None

        def save(target: Path) -> None:
            save_whole(self.model, self.trainer.processing_class, target, state_dict=state)

        return self.facts(), save

    def conclude(self) -> None:
        """What is to be done once it is trained: the last evaluation was not of the best model."""
        if self.trainer.args.load_best_model_at_end:
            self.trainer.evaluate()

    @property
    def model(self) -> Any:
        """As it is saved: without what wraps it."""
        return self.trainer.accelerator.unwrap_model(self.trainer.model_wrapped, keep_torch_compile=False)

    def remember(self) -> Kept:
        data = self.trainer.eval_dataset or self.trainer.train_dataset
        return rows_of_pairs(data, rewards=self.rewards).remember(self.model, self.trainer.processing_class)

    def release(self) -> None:
        self.trainer.accelerator.free_memory()
        self.trainer, self.facts = None, None


def computed_in_bf16(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments with bfloat16 autocast, where nothing else is asked for and CUDA has it: weights stay as `model.dtype`."""
    settled = {"bf16", "fp16", "use_cpu", "deepspeed"} & set(given) or "ACCELERATE_MIXED_PRECISION" in os.environ
    if settled or not torch.cuda.is_available() or not torch.cuda.is_bf16_supported():
        return given
    return {"bf16": True, **given}


def lines(folder: RunFolder, say: Say) -> LogLines:
    """Every log line into metrics.jsonl, and a short one to the terminal."""

    def listen(step: int, last: int, line: dict[str, Any]) -> None:
        folder.append_metrics({"step": step, **line})
        side = "eval_" if any(key.startswith("eval_") for key in line) else ""
        shown = {"loss": "loss", "rewards/margins": "margin", "rewards/accuracies": "accuracy"}
        parts = [f"{label} {line[side + key]:.4g}" for key, label in shown.items() if side + key in line]
        if parts:
            say(f"step {step}/{last}  {'held out  ' if side else ''}{'  '.join(parts)}")

    return LogLines(listen)


def _prompt_keys(pairs: Sequence[Pair]) -> np.ndarray:
    return content_keys((pair.prompt for pair in pairs), repeat("", len(pairs)))


def _split(pairs: Sequence[Pair], fraction: float, seed: int) -> Sides:
    """By prompt, so that no prompt is on both sides; prompts in the order in which they come."""
    _, first, group = np.unique(as_bytes(_prompt_keys(pairs)), return_index=True, return_inverse=True)
    group = np.argsort(np.argsort(first))[group]
    order = torch.randperm(len(first), generator=torch.Generator().manual_seed(seed)).numpy()
    out = np.isin(group, order[: max(1, round(fraction * len(order)))])
    by_prompt = np.argsort(group, kind="stable")
    if out.all():
        raise ConfigError(f"evaluation.fraction: {fraction} of {len(first)} prompts leaves nothing to train on; use a file.")
    return select(pairs, by_prompt[~out[by_prompt]]), select(pairs, by_prompt[out[by_prompt]])


def _warn_of_overlap(train: Sequence[Pair], held_out: Sequence[Pair]) -> None:
    sides, prompts = KeyIndex(side_keys(train).reshape(-1)), KeyIndex(_prompt_keys(train))
    same = int((sides.locate(side_keys(held_out).reshape(-1)).reshape(-1, 2) >= 0).any(1).sum())
    shared = int((prompts.locate(_prompt_keys(held_out)) >= 0).sum())
    if same or shared:
        warnings.warn(
            f"evaluation: {same} of {len(held_out)} held-out pairs have a completion that is trained on, "
            f"and {shared} a prompt that is. Their figures do not show generalisation.",
            MultirefWarning,
            stacklevel=2,
        )
