"""What a run's YAML file can say. These dataclasses are the documentation of the format; `multiref train --help` points here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from multiref.errors import ConfigError

__all__ = ["DataSource", "Evaluation", "Lora", "Model", "Objective", "Reference", "Run", "plain"]


@dataclass
class Model:
    """The policy. `path`: a model folder or hub id; `dtype` of its weights; `adapter`: an adapter folder to go on training."""

    path: str
    dtype: str = "float32"
    revision: str | None = None
    adapter: str | None = None
    quantization: str | None = None
    trust_remote_code: bool = False


@dataclass
class Reference:
    """A reference. `model`: folder or hub id (or `endpoint`: the URL of a completion server); `weight`: all of them or none."""

    name: str
    model: str | None = None
    endpoint: str | None = None
    weight: float | None = None
    adapter: str | None = None
    dtype: str | None = None
    revision: str | None = None
    quantization: str | None = None
    max_length: int | None = None
    trust_remote_code: bool | None = None

    def options(self) -> dict[str, Any]:
        """What opens it."""
        if (self.model is None) == (self.endpoint is None):
            raise ConfigError(f"references: {self.name!r} needs a model or an endpoint, one of them.")
        given = {key: value for key, value in asdict(self).items() if value is not None and key not in ("name", "weight")}
        limit = given.pop("max_length", None)
        if self.endpoint is not None:  # what concerns models on this machine has no effect
            given = {key: value for key, value in given.items() if key not in ("adapter", "dtype", "quantization")}
        return given if limit is None else given | {"tokenisation": {"max_length": limit}}


@dataclass
class Objective:
    """What is minimised. `kind`: preference (the regularizer's implicit reward), multi_dpo, mrpo, renormalised_tokens (the token mixture)."""

    kind: str = "preference"
    loss: str = "bradley_terry"
    label_smoothing: float = 0.0
    length_normalised: bool = False
    reward_range: float | None = None
    trust_region: float | None = None
    anchor: str | None = None
    adaptive: bool = False


@dataclass
class DataSource:
    """A file of preference pairs. `limit`: only so many, from the start."""

    path: str
    limit: int | None = None


@dataclass
class Evaluation:
    """Held-out pairs: a file (`path`, `limit`), or `fraction` of the training data, split by prompt."""

    path: str | None = None
    limit: int | None = None
    fraction: float | None = None


@dataclass
class Lora:
    """A LoRA adapter on the policy, as of `peft.LoraConfig`."""

    r: int = 8
    lora_alpha: int = 16
    lora_dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"


@dataclass
class Run:
    """A training run.

    `regularizer`: ReverseKL, ForwardKL, {kind: AlphaDivergence, alpha: 0.5} or {kind: PooledKL, order: -1}. `weighting`: a strategy that
    chooses the weights (otherwise they are the references', or uniform): see docs/choose-beta-and-weights.md. `scores`: the store; by
    default in the run's folder. `too_long`: what becomes of pairs that do not fit `max_length`: "drop" or "error".
    """

    model: str | Model
    references: list[Reference]
    beta: float
    data: str | DataSource
    output: str
    regularizer: str | dict = "ReverseKL"
    objective: str | Objective = field(default_factory=Objective)
    weighting: str | dict | None = None
    evaluation: str | Evaluation | None = None
    training: dict = field(default_factory=dict)
    lora: Lora | None = None
    scores: str | None = None
    end: bool = True
    max_length: int | None = None
    truncation: str = "keep_start"
    too_long: str = "drop"
    token_budget: int | None = None
    title: str | None = None

    def __post_init__(self) -> None:
        self.model = Model(self.model) if isinstance(self.model, str) else self.model
        self.data = DataSource(self.data) if isinstance(self.data, str) else self.data
        self.objective = Objective(self.objective) if isinstance(self.objective, str) else self.objective
        self.evaluation = Evaluation(self.evaluation) if isinstance(self.evaluation, str) else self.evaluation
        self.regularizer = {"kind": self.regularizer} if isinstance(self.regularizer, str) else self.regularizer
        self.weighting = {"kind": self.weighting} if isinstance(self.weighting, str) else self.weighting


def plain(run: Run) -> dict[str, Any]:
    """The resolved configuration as plain values, defaults written out."""
    return asdict(run)


def spec_of(model: Any) -> Any:
    """`Model` of a file → `models.ModelSpec`."""
    from multiref.models import ModelSpec

    return ModelSpec(**asdict(model))


def tokenisation_of(run: Any, max_length: int | None) -> Any:
    """What a file says about tokens → `models.Tokenisation`."""
    from multiref.models import Tokenisation

    return Tokenisation(end=run.end, max_length=max_length, truncation=run.truncation)
