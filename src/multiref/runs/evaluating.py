"""What `multiref evaluate` does: each policy in turn samples the same prompts; the figures at the end."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from multiref.errors import ConfigError
from multiref.evaluation import (
    BestOf,
    Contestant,
    Optimum,
    PassAtK,
    TokenPool,
    measure_divergences,
    measure_texts,
    read_rollouts,
    sample_rewards,
)
from multiref.models import Generation, LanguageModel, ModelSpec, load
from multiref.references import References
from multiref.references.identity import file_identity
from multiref.references.rollouts import RolloutScorer
from multiref.references.scores import same_vocabulary
from multiref.regularizers import ReverseKL, check_weights
from multiref.runs.base import FORMAT, Say
from multiref.runs.evaluation_page import write_evaluation_page
from multiref.runs.execute import named_models
from multiref.runs.folder import RunFolder
from multiref.runs.prompts import Prompts, Row, different
from multiref.runs.rewards import RewardSetting, make_rewards
from multiref.runs.strict import Strict
from multiref.training.online.rewards import Reward


class EvaluationSettings(Strict):
    """Which policies, on which prompts, by which rewards.

    policies: name → folder or hub id; differences are against the first.
    samples: completions of each prompt under every policy. k: of pass@k.
    batch: prompts side by side. resamples: of the bootstrap over prompts.
    """

    policies: dict[str, str] = Field(min_length=1)
    prompts: Prompts
    rewards: list[RewardSetting] = Field(min_length=1)
    samples: int = Field(default=8, gt=0)
    k: list[int] = Field(default_factory=lambda: [1])
    temperature: float = Field(default=1.0, ge=0)
    max_new_tokens: int = Field(default=256, gt=0)
    batch: int = Field(default=8, gt=0)
    resamples: int = Field(default=2000, ge=100)
    seed: int = 0
    dtype: str = "float32"
    references: dict[str, str] = Field(default_factory=dict)
    weights: list[float] | None = None
    beta: float | None = Field(default=None, gt=0)
    beside: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _within(self) -> Self:
        if bool(self.references) != (self.beta is not None):
            raise ValueError("references, beta: expected both or neither; J = reward − β Σ_k w_k KL(π‖π_k).")
        if self.references:
            _weights(self)
        for each in self.beside:
            if not re.fullmatch(r"references|token-pool|optimum|best-of-[1-9]\d{0,3}", each) or not self.references:
                raise ValueError(
                    f"beside: found {each!r}; expected references, token-pool, best-of-N or optimum, with references given."
                )
        beside = {*self.beside, *(f"reference {name}" for name in self.references)}
        if taken := [name for name in self.policies if name in beside]:
            raise ValueError(f"policies: {taken[0]!r} is the name of what is compared beside them; choose another.")
        if wrong := [k for k in self.k if not 1 <= k <= self.samples]:
            raise ValueError(f"k: expected from 1 to samples = {self.samples}, found {wrong[0]}.")
        return self


def evaluate(
    settings: EvaluationSettings, out: str | Path, *, device: str | None = None, say: Say = print, take_over: bool = False
) -> dict[str, Any]:
    """Writes `out`/evaluation.json, report.html, config.yaml and samples/<policy>.jsonl; returns the summary.
    A second call with the same settings samples
    what is missing; k and resamples may change. take_over: from a process that is doing it."""
    rows, rewards, folder = settings.prompts.rows(), make_rewards(settings.rewards), RunFolder(out)
    if "k" in settings.model_fields_set and not any(reward.name == "correctness" for reward in rewards):
        raise ConfigError("k: pass@k counts right answers, and no reward here says what is right. Leave it out, or use gsm8k.")
    later = {"k", "resamples"} | (set() if settings.references else {"references", "weights", "beta", "beside"})
    asked = {"format": FORMAT, **settings.model_dump(mode="json", exclude=later)}
    models = {path: ModelSpec(path) for path in (*settings.policies.values(), *settings.references.values())}
    asked["models"] = {name: file_identity(spec) for name, spec in (models | named_models(asked)).items()}
    once = list(different(rows, rewards))
    if len(once) < len(rows):
        say(f"{len(rows) - len(once):,} of {len(rows):,} prompts stand there again; each counts once in what follows.")
    with folder.claimed(asked, take_over=take_over):
        return _compare(settings, once, rewards, folder, device, say)


def _compare(
    settings: EvaluationSettings, rows: list[Row], rewards: list[Reward], folder: RunFolder, device: str | None, say: Say
) -> dict[str, Any]:
    found, generation = {}, Generation(settings.max_new_tokens, temperature=settings.temperature)

    def opened(path: str) -> LanguageModel:
        return load(ModelSpec(path, dtype=settings.dtype), device=device)

    refs = {name: opened(path) for name, path in settings.references.items()}
    for name, contestant in _contestants(settings, refs, opened):
        say(f"{name}: {settings.policies.get(name, 'beside')}")
        one = contestant()
        if isinstance(one, LanguageModel) and refs:  # their token ids are scored by one another
            same_vocabulary([name, *refs], [each.tokenizer.get_vocab() for each in (one, *refs.values())])
        found[name] = sample_rewards(
            one,
            rows,
            rewards,
            generation,
            samples=settings.samples,
            seed=settings.seed,
            block=settings.batch,
            store=folder.path / "samples" / f"{name}.jsonl",
            say=partial(_under, folder, say, name),
        )
    judged = {name: each["correctness"] for name, each in found.items() if "correctness" in each}
    right = {name: (each > 0).double().masked_fill(each.isnan(), torch.nan) for name, each in judged.items()}
    shown = settings.model_dump(include={"samples", "temperature", "max_new_tokens", "seed"})
    if refs:
        shown |= {"beta": settings.beta, "weights": dict(zip(refs, _weights(settings).tolist()))}
    measured = _measured(settings, refs, found, folder) if refs else {}
    summary = PassAtK(found, right, shown, measured).summary(sorted(set(settings.k)), resamples=settings.resamples)
    folder.write("evaluation.json", json.dumps(summary, indent=1, ensure_ascii=False))
    write_evaluation_page(folder.path / "report.html", summary)
    return summary


def _weights(settings: EvaluationSettings) -> Tensor:
    """[K] float64."""
    return check_weights(settings.weights, len(settings.references)).double()


def _contestants(
    settings: EvaluationSettings, refs: Mapping[str, LanguageModel], opened: Callable[[str], LanguageModel]
) -> Iterator[tuple[str, Callable[[], LanguageModel | Contestant]]]:
    """Names and how each is opened: the policies, then what is asked for beside them."""
    first = next(iter(settings.policies))
    for name, path in settings.policies.items():
        yield name, partial(opened, path)
    for each in settings.beside:
        if each == "references":
            for name, model in refs.items():
                yield f"reference {name}", partial(lambda one: one, model)
        elif each == "token-pool":
            yield each, partial(TokenPool, list(refs.values()), _weights(settings))
        elif each == "optimum":
            rule = ReverseKL(tuple(_weights(settings).tolist()))
            yield each, partial(Optimum, References(dict(refs)), rule, float(settings.beta or 0.0))
        else:
            n = int(each.removeprefix("best-of-"))
            yield f"{each} of {first}", partial(lambda n: BestOf(opened(settings.policies[first]), n), n)


def _measured(
    settings: EvaluationSettings,
    refs: Mapping[str, LanguageModel],
    found: Mapping[str, Mapping[str, Tensor]],
    folder: RunFolder,
) -> dict[str, Tensor]:
    """{metric: [policies, P]} beyond the rewards, from the samples that are kept."""
    drawn = {name: read_rollouts(folder.path / "samples" / f"{name}.jsonl") for name in found}
    total = {name: each["total"] for name, each in found.items()}
    scorer = RolloutScorer(dict(refs), next(iter(refs.values())).tokenizer)
    divergences = measure_divergences(drawn, total, scorer, _weights(settings), float(settings.beta or 0.0))
    return {**divergences, **measure_texts(drawn, total)}


def _under(folder: RunFolder, say: Say, name: str, text: str) -> None:
    folder.check()
    say(f"{name}: {text}")
