"""What a reward model's YAML file can say. This dataclass is the documentation of the format; recipes/reward-model.yaml is an example."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from multiref.runs.settings import DataSource, Evaluation, Lora, Model
from multiref.errors import ConfigError

__all__ = ["RewardRun"]


@dataclass
class RewardRun:
    """`model`: a causal language model (its head is replaced by one number) or a reward model to go on with. `data`: pairs; a `margin` column is used.

    `label_smoothing`: share of labels taken to be wrong. `centre`: c of c (r_w + r_l)², which keeps rewards around zero. `lora`: train an adapter, merged
    into the model at the end. `too_long`: what becomes of pairs that do not fit `max_length`: "drop", "keep" (cut) or "error".
    """

    task: str
    model: str | Model
    data: str | DataSource
    output: str
    label_smoothing: float = 0.0
    centre: float = 0.0
    evaluation: str | Evaluation | None = None
    training: dict = field(default_factory=dict)
    lora: Lora | None = None
    end: bool = True
    max_length: int | None = None
    truncation: str = "keep_start"
    too_long: str = "drop"
    title: str | None = None

    def __post_init__(self) -> None:
        if self.task != "reward":
            raise ConfigError(f"task: found {self.task!r}, expected reward.")
        self.model = Model(self.model) if isinstance(self.model, str) else self.model
        self.data = DataSource(self.data) if isinstance(self.data, str) else self.data
        self.evaluation = Evaluation(self.evaluation) if isinstance(self.evaluation, str) else self.evaluation
        self.training = {"learning_rate": 1e-5, **self.training}
        if not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(f"label_smoothing: found {self.label_smoothing}, expected at least 0 and below 0.5.")
        if not self.centre >= 0:
            raise ConfigError(f"centre: found {self.centre}, expected at least 0.")
        for name in ("adapter", "quantization"):
            if getattr(self.model, name):
                raise ConfigError(
                    f"model.{name}: a reward model is made from whole weights; merge the adapter first, or leave {name} out."
                )

    def plain(self) -> dict[str, Any]:
        """The resolved configuration, defaults written out."""
        return asdict(self)
