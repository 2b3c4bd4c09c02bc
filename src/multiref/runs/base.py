"""What every run's file can say, and what the files of most tasks share: the policy, references with weights, a regularizer,
an adapter."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self

import torch
from pydantic import BeforeValidator, Field, model_validator

from multiref.errors import ConfigError
from multiref.models import LanguageModel, ModelSpec, Tokenisation, choose_precision
from multiref.models.loading import count_parameters
from multiref.references.scores import check_names
from multiref.regularizers import AlphaDivergence, FDivergence, ForwardKL, PooledKL, Regularizer, ReverseKL
from multiref.report import Block
from multiref.runs.folder import RunFolder
from multiref.runs.hub import HubSetting
from multiref.runs.strict import Arguments, KeyPlace, ReadAs, Strict, arguments_of, one_of, open_short
from multiref.runs.trackers import TrackerName
from multiref.runs.waiting import main_first
from multiref.training.adapters import with_trained_adapter
from multiref.training.saved import Kept

FORMAT = 2  # of a run's folder: raised when an earlier version's folder cannot be gone on with
Say = Callable[[str], None]


@dataclass
class Facts:
    """What a finished job tells its card and its page.

    Attributes:
        asked: one sentence. objective, formula: what was optimised, in words and as a formula.
            references: name → (source, weight as text).
        checks: sentences on what was checked and found.
        metrics: plain numbers to show. curves: caption → the metrics of one figure. limits: what the numbers do not show.
        tables: blocks for the page's first screen. held_out: number of pairs kept for evaluation.
        notes: Markdown for the end of the card.
    """

    asked: str
    base: str
    objective: str
    formula: str
    data: str
    beta: float | None = None
    references: dict[str, tuple[str, str]] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    checks: list[str] = field(default_factory=list)
    curves: dict[str, Sequence[str]] = field(default_factory=dict)
    limits: tuple[str, ...] = ()
    tables: list[Block] = field(default_factory=list)
    held_out: int = 0
    notes: str = ""


class Job(Protocol):
    """A run that is ready to train. Every process has one and calls the same methods."""

    def train(self, checkpoint: Path | None) -> None:
        """To the end, from a checkpoint where there is one."""

    def finish(self) -> tuple[Facts, Callable[[Path], None]]:
        """What came out, and what writes the model; the latter is called on the main process only."""

    def remember(self) -> Kept:
        """Rows as the finished model scores them in memory."""

    def release(self) -> None:
        """Lets go of model and optimiser; nothing else is asked of the job afterwards."""


ModelSetting = Annotated[
    ModelSpec, BeforeValidator(lambda given: open_short(given, "path"), json_schema_input_type=str | ModelSpec)
]


class Lora(Strict):
    """A LoRA adapter on the policy, as of `peft.LoraConfig`."""

    r: int = Field(default=8, gt=0)
    lora_alpha: int = 16
    lora_dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"

    @model_validator(mode="after")
    def _silent(self) -> Self:
        if self.lora_dropout:
            raise ValueError(
                f"lora_dropout: found {self.lora_dropout}, expected 0: dropout is noise in log π, and so in every ratio "
                "log π / π_k, from the second step on. Policies train without; against overfitting use evaluation and beta."
            )
        return self


class BaseRun(Strict, ABC):
    """A run.

    task: what is done. model: what is trained, a folder, a hub id or a `ModelSpec`.
    lora: train an adapter; null trains all weights, or the adapter that the model comes with. On top of one that it comes with,
    the new one has base and first adapter merged as its base. output: the run's folder. title: of its page and card.
    check_saved: load what was saved and compare it with what was trained.
    report_to: trackers that take every line of metrics.jsonl too, under the same names: tensorboard, wandb, … of accelerate's.
    push_to_hub: owner/name, or {repo, private, token, endpoint}, for model and card once the run is finished.
    format: of the folder, written into it.
    """

    task: str
    model: ModelSetting
    lora: Lora | None = None
    output: str
    title: str | None = None
    check_saved: bool = True
    report_to: Annotated[
        list[TrackerName],
        BeforeValidator(
            lambda given: [given] if isinstance(given, str) else given, json_schema_input_type=TrackerName | list[TrackerName]
        ),
    ] = Field(default_factory=list)
    push_to_hub: HubSetting | None = None
    format: Literal[2] = 2

    @abstractmethod
    def ready(self) -> Callable[[RunFolder, Say], Job]:
        """Refuse what can be refused before the folder is claimed; the result opens models and data in the folder."""

    @property
    def first_seed(self) -> int:
        """What the weights that a run adds (an adapter, a reward's head) are drawn from: its training's seed."""
        training: Any = getattr(self, "training", None)
        return int(training.given().get("seed", 0)) if training is not None else 0

    def adapted(self, loaded: LanguageModel, with_lora: Callable[..., Any]) -> Any:
        """The model with a new adapter, where the run asks for one."""
        try:
            return with_trained_adapter(loaded, self.model, None if self.lora is None else self.lora.model_dump(), with_lora)
        except ValueError as error:
            raise ConfigError(f"lora: {error}") from None

    @model_validator(mode="after")
    def _trains(self) -> Self:
        if self.model.dtype == "auto":
            raise ValueError("model.dtype: auto is for references, which are only scored; leave it out (float32), or name one.")
        return self

    @property
    def begins_as(self) -> list[ModelSpec]:
        """The models whose weights are trained."""
        return [self.model]

    def memory(self) -> tuple[float, str] | None:
        """(bytes, a sentence): what training needs before activations, from the configuration alone; None where that does not
        say it."""
        kind, counts = self.model.dtype or "float32", [count_parameters(each) for each in self.begins_as]
        if None in counts or self.model.quantization is not None:
            return None
        count = sum(each or 0 for each in counts)
        size = count * getattr(torch, kind).itemsize
        many = f"{count / 1e9:.3g} B" if count >= 1e9 else f"{count / 1e6:.3g} M"
        if self.lora is not None or self.model.adapter is not None:
            return size, f"{many} weights in {kind}: {size / 1e9:.3g} GB; an adapter on them trains."
        less = "" if size == 2 * count else "; model.dtype: bfloat16 halves it, and loses small updates"
        return 4 * size, (
            f"{many} weights in {kind}, with gradients and Adam's two moments: {4 * size / 1e9:.3g} GB before activations, "
            f"over all processes{less}."
        )

    def say_memory(self, say: Say) -> None:
        """Before anything is loaded."""
        if (found := self.memory()) is not None:
            say(found[1])

    def plain(self) -> dict[str, Any]:
        """The resolved settings, defaults written out."""
        return self.model_dump(mode="json")


REGULARIZERS: dict[str, Callable[..., Regularizer]] = {
    "ReverseKL": ReverseKL,
    "ForwardKL": ForwardKL,
    "AlphaDivergence": AlphaDivergence,
    "PooledKL": PooledKL,
    "JensenShannon": FDivergence.jensen_shannon,
    "Jeffreys": FDivergence.jeffreys,
}
RegularizerSetting = Annotated[Arguments[Regularizer], ReadAs(one_of("kind", REGULARIZERS, without={"weights"}))]
TokenisationSetting = Annotated[Arguments[Tokenisation], ReadAs(arguments_of(Tokenisation))]


class ReferenceSetting(Strict):
    """A reference. model: a folder, a hub id or a `ModelSpec`; or endpoint: the URL of a completion server, and api_key: where
    its key is, env:NAME or file:PATH.
    weight: all of them or none.
    tokenisation: in what its own differs from the run's."""

    MOVED = {
        key: f"it is a property of the model: write model: {{path: …, {key}: …}}."
        for key in ("adapter", "attention", "dtype", "revision", "quantization", "trust_remote_code")
    } | {key: f"write tokenisation: {{{key}: …}}." for key in ("max_length", "chat_template_kwargs")}

    name: str
    model: ModelSetting | None = None
    endpoint: str | None = None
    api_key: KeyPlace | None = None
    weight: float | None = None
    tokenisation: TokenisationSetting | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.model is None) == (self.endpoint is None):
            raise ValueError(f"{self.name!r} needs a model or an endpoint, one of them.")
        return self

    @property
    def source(self) -> str:
        """Where it is from, for people."""
        return self.endpoint or str(self.model and self.model.path)

    def local(self, why: str) -> ModelSpec:
        """The model; ConfigError where there is an endpoint instead."""
        if self.model is None:
            raise ConfigError(f"references: {self.name!r} is an endpoint; {why}, give a model.")
        return self.model

    def opens(self) -> Any:
        """As `References` takes it."""
        key = {} if self.api_key is None else {"api_key": self.api_key}
        where = {"endpoint": self.endpoint, **key} if self.model is None else {"model": self.model}
        return where if self.tokenisation is None else {**where, "tokenisation": self.tokenisation.given()}


class PooledRun(BaseRun):
    """A run under several references.

    regularizer: ReverseKL, ForwardKL, {kind: AlphaDivergence, alpha: 0.5}, {kind: PooledKL, order: -1}, JensenShannon or
    Jeffreys, under the references' weights (uniform where none is given).
    """

    references: list[ReferenceSetting] = Field(min_length=1)
    beta: float = Field(ge=0)
    regularizer: RegularizerSetting = Field(default="ReverseKL", validate_default=True)

    @model_validator(mode="after")
    def _weights(self) -> Self:
        missing = [reference.name for reference in self.references if reference.weight is None]
        if missing and len(missing) < len(self.references):
            raise ValueError(
                f"references: {missing[0]!r} has no weight while others have; give all of them a weight, or none (uniform)."
            )
        try:
            check_names(self.names)
            self.pool()
        except ValueError as error:
            raise ValueError(f"references: {error}") from None
        return self

    @property
    def names(self) -> list[str]:
        return [reference.name for reference in self.references]

    @property
    def counted(self) -> str:
        """How many references, in words."""
        return f"{len(self.references)} reference{'s' * (len(self.references) > 1)}"

    @property
    def weights(self) -> tuple[float, ...] | None:
        """The references' weights; None where none is given."""
        given = tuple(reference.weight for reference in self.references if reference.weight is not None)
        return given or None

    def pool(self) -> Regularizer:
        """The regularizer with these weights."""
        return self.regularizer.make(weights=self.weights)

    def settled(self, folder: RunFolder, say: Say) -> list[ReferenceSetting]:
        """The references with the precision that `dtype: auto` chose: once, kept in the folder's dtypes.json and read from
        there when the run goes on."""
        auto = [each for each in self.references if each.model is not None and each.model.dtype == "auto"]
        if not auto:
            return self.references
        with main_first(f"precision {folder.path.resolve()}"):
            chosen = folder.read("dtypes.json", dict)
            for each in auto:
                if each.model is not None and each.name not in chosen:
                    found = choose_precision(each.model)
                    chosen[each.name] = asdict(found)
                    say(f"{each.name}: {found}.")
                    folder.write("dtypes.json", json.dumps(chosen, indent=1))
        return [
            each.model_copy(update={"model": replace(each.model, dtype=chosen[each.name]["dtype"])})
            if each.model is not None and each in auto
            else each
            for each in self.references
        ]

    def shown(self) -> dict[str, tuple[str, str]]:
        """name → (source, weight as text)."""
        weights = self.weights or (1 / len(self.references),) * len(self.references)
        return {each.name: (each.source, f"{weight:.4g}") for each, weight in zip(self.references, weights, strict=True)}
