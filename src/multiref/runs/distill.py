"""`task: distill`: one student from several teachers, on its own completions and on texts that follow the prompts."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from multiref.errors import ConfigError
from multiref.models import LanguageModel, ModelSpec, load, product_of
from multiref.runs.base import Say
from multiref.runs.folder import RunFolder
from multiref.runs.online import Figures, OnlineJob, RolloutRun
from multiref.runs.prompts import Prompts, Row
from multiref.runs.strict import Strict
from multiref.training.online import OnlineTrainer, TextStates, WarmUp
from multiref.training.online.evaluate import floor_figures, floors, text_losses


class WarmUpSetting(Strict):
    """Distillation's first `share` of the steps at the states of the texts that follow the prompts, for a share `text_share` of
    them, and else at the student's own, under `penalty` (docs/distillation.md). max_new_tokens: where texts are cut there, if
    not as completions are."""

    share: float = Field(default=0.8, ge=0, le=1)
    max_new_tokens: int | None = Field(default=None, gt=0)
    text_share: float = Field(default=1.0, ge=0, le=1)
    penalty: Literal["per_token_forward_kl", "per_token_reverse_kl"] = "per_token_forward_kl"


class DistillEvaluation(Strict):
    """Held-out prompts, before and after: nats per token of the texts that follow them, cut at `max_new_tokens`, under the
    student and under each teacher; and where `floor` is above 0, on that many prompts of each source Σ_k w_k KL(π‖π_k) of
    `samples` sampled completions beside its floor −log F by sequential Monte Carlo with `particles`."""

    prompts: list[Prompts] = Field(min_length=1)
    samples: int = Field(default=4, gt=0)
    floor: int = Field(default=0, ge=0)
    particles: int = Field(default=256, gt=0)

    def figures(self, trainer: OnlineTrainer, held_out: Mapping[str, list[Row]], known: dict[str, Any]) -> Figures:
        """{source/metric: (mean, low, high)}; `known`: the floors of each source, which the first call fills in and a second
        one finds."""
        figures: Figures = {}
        for name, rows in held_out.items():
            found = text_losses(trainer, rows)
            if self.floor:
                few = rows[: self.floor]
                if name not in known:
                    known[name] = floors(trainer, few, particles=self.particles)
                found |= floor_figures(trainer, few, known[name], samples=self.samples)
            figures |= {f"{name}/{figure}": value for figure, value in found.items()}
        return figures


class DistillRun(RolloutRun):
    """Multi-teacher distillation: no reward, Σ_k w_k D(π‖π_k) alone.

    text_share: with one completion a prompt and per_token_reverse_kl, the share of prompts whose states are those of the text
    that follows them.
    warm_up: for a student that is far from its teachers: first at states of the texts, with one completion a prompt.
    start: model, or product: the student is a product of copies of its teachers, as large as all of them;
    `model` gives the tokenizer.
    """

    MOVED: ClassVar = {"rewards": "distillation has none; use task: online."}

    task: Literal["distill"]
    beta: float = Field(gt=0)
    start: Literal["model", "product"] = "model"
    text_share: float = Field(default=0.0, ge=0, le=1)
    warm_up: WarmUpSetting | None = None
    evaluation: DistillEvaluation | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.text_share and (self.penalty != "per_token_reverse_kl" or self.server is not None):
            raise ValueError(
                "text_share: completions that the policy did not sample are for penalty: per_token_reverse_kl alone, "
                "without a server; other rules would be biased."
            )
        if self.start == "product" and self.lora is not None:
            raise ValueError("lora: a product is made in memory: an adapter on it would have no base to load; leave it out.")
        method = self.method.make()
        if (self.warm_up is not None or self.text_share) and (type(method).__name__ != "Reinforce" or method.group != 1):
            raise ValueError(
                "method: expected one completion a prompt with warm_up or text_share (there is one text a prompt): method: "
                "{name: reinforce}."
            )
        return self

    @property
    def longest(self) -> int:
        return max(super().longest, (self.warm_up and self.warm_up.max_new_tokens) or 0)

    def ready(self) -> Callable[[RunFolder, Say], OnlineJob]:
        return self.begin([], text=True)

    def student(self, loaded: LanguageModel) -> Any:
        if self.start == "model":
            return loaded.model
        return product_of([load(spec).model for spec in self.begins_as], self.weights)

    @property
    def begins_as(self) -> list[ModelSpec]:
        if self.start == "model":
            return super().begins_as
        if any(each.model is None or each.model.adapter or each.model.quantization for each in self.references):
            raise ConfigError("start: product needs references that are model folders, without adapters or quantization.")
        return [replace(each.local("product"), dtype=self.model.dtype) for each in self.references]

    def sampler(self, rows: list[Row], folder: RunFolder) -> Any:
        return self._states(rows, self.text_share, None) if self.text_share else super().sampler(rows, folder)

    def warming(self, rows: list[Row]) -> WarmUp | None:
        if (w := self.warm_up) is None:
            return None
        return WarmUp(w.share, self._states(rows, w.text_share, w.max_new_tokens), w.penalty)

    def _states(self, rows: list[Row], share: float, limit: int | None) -> TextStates:
        """States along the texts of the prompts, for a share of them."""
        texts: dict[Any, list[str]] = {}
        for row in rows:
            if row.get("text") and isinstance(row["prompt"], str):
                texts.setdefault(row["prompt"], []).append(row["text"])
        if not texts:
            raise ConfigError(
                "prompts: warm_up and text_share need texts that follow the prompts: kind gsm8k with style plain, or `words`."
            )
        unfinished = {row["prompt"] for row in rows if row.get("unfinished")}
        return TextStates(
            texts, share=share, max_new_tokens=limit or self.training.make().max_new_tokens, unfinished=unfinished
        )
