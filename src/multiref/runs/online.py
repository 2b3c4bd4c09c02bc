"""`task: online`: a policy that is trained on its own completions under K references, for rewards;
distillation builds on it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from multiref.errors import ConfigError
from multiref.models import LanguageModel, load
from multiref.models.encoding import context_of
from multiref.models.sampling import encode_prompts
from multiref.references import References
from multiref.references.completion_api import CompletionApi, Connection
from multiref.references.rollouts import check_apart
from multiref.report import Table, public
from multiref.runs.base import Facts, PooledRun, Say
from multiref.runs.evaluation_page import figure_text
from multiref.runs.folder import RunFolder
from multiref.runs.prompts import Prompts, Row
from multiref.runs.rewards import RewardSetting, make_rewards
from multiref.runs.strict import Arguments, KeyPlace, ReadAs, Strict, arguments_of, one_of
from multiref.training.adapters import save_whole
from multiref.training.arguments import with_lora
from multiref.training.online import (
    GRPO,
    PENALTIES,
    RLOO,
    AdapterPush,
    AdaptiveBeta,
    ClipObjective,
    ClipReward,
    Method,
    OnlineArguments,
    OnlineTrainer,
    Penalty,
    Reinforce,
    Rule,
    ServerSampler,
    WarmUp,
    WinRate,
)
from multiref.training.online.evaluate import evaluate_online, sample_few
from multiref.training.online.rewards import Reward
from multiref.training.saved import Kept, rows_of_rollouts

Figures = dict[str, tuple[float, float, float]]

SHOWN = {"reward": "reward", "divergence/per_token": "divergence per token", "kl": "kl", "objective": "objective", "ess": "ess"}
METHODS = {"rloo": RLOO, "grpo": GRPO, "reinforce": Reinforce}
CLIPS = {"reward": ClipReward, "objective": ClipObjective}
ClipSetting = Annotated[Arguments[Penalty], ReadAs(one_of("rule", CLIPS))]
MethodSetting = Annotated[Arguments[Method], ReadAs(one_of("name", METHODS))]
TrainingSetting = Annotated[Arguments[OnlineArguments], ReadAs(arguments_of(OnlineArguments))]
AdaptiveBetaSetting = Annotated[Arguments[AdaptiveBeta], ReadAs(arguments_of(AdaptiveBeta))]
PenaltyName = Annotated[str, ReadAs(Literal[tuple(PENALTIES)])]


class ServerSetting(Strict):
    """Generation by a vLLM server at `endpoint` in place of transformers; it is given the policy's adapter (`lora`) every so
    many steps."""

    endpoint: str
    api_key: KeyPlace | None = None
    every: int = Field(default=1, gt=0)
    concurrency: int = Field(default=8, gt=0)
    timeout: float = Field(default=600.0, gt=0)


class OnlineEvaluation(Strict):
    """Held-out prompts, before and after: rewards of `samples` completions of each, and pass@k for each of `k` where the reward
    is gsm8k."""

    prompts: list[Prompts] = Field(min_length=1)
    samples: int = Field(default=4, gt=0)
    k: list[int] = Field(default_factory=lambda: [1])

    @model_validator(mode="after")
    def _within(self) -> Self:
        if wrong := [k for k in self.k if not 1 <= k <= self.samples]:
            raise ValueError(f"k: expected from 1 to samples = {self.samples}, found {wrong[0]}.")
        return self

    def figures(self, trainer: OnlineTrainer, held_out: Mapping[str, list[Row]], known: dict[str, Any]) -> Figures:
        """{metric: (mean, low, high)} over prompts."""
        return evaluate_online(trainer, [row for each in held_out.values() for row in each], samples=self.samples, ks=self.k)


class RolloutRun(PooledRun):
    """A policy that is trained on completions it samples.

    prompts: where they come from. method: {name: rloo | reinforce | grpo, …its arguments}. penalty: a name of
    `multiref.training.online.PENALTIES`, or nothing for the exact rule of the regularizer. adaptive_beta: β that seeks a KL.
    server: completions from a server; needs `lora`. too_long: prompts that leave no room for `max_new_tokens` in the policy's
    context: left out, or refused.
    training: arguments of `OnlineArguments`.
    """

    prompts: list[Prompts] = Field(min_length=1)
    method: MethodSetting = Field(default="rloo", validate_default=True)
    penalty: PenaltyName | None = None
    adaptive_beta: AdaptiveBetaSetting | None = None
    server: ServerSetting | None = None
    too_long: Literal["drop", "error"] = "drop"
    training: TrainingSetting = Field(default={}, validate_default=True)
    evaluation: Any = None

    @model_validator(mode="after")
    def _served(self) -> Self:
        if self.server is not None and self.lora is None:
            raise ValueError(
                "server: expected with lora, whose adapter it is given: through a configuration a server takes no whole model."
            )
        if self.weights is not None and any(source.weights for source in self.prompts):
            raise ValueError("prompts: weights: expected weights of the references or of the prompts, found both.")
        return self

    def rows(self) -> list[Row]:
        """The prompts of every source."""
        return [row for source in self.prompts for row in source.rows(self.names)]

    @property
    def longest(self) -> int:
        """Tokens of the longest completion."""
        return self.training.make().max_new_tokens

    def held_out(self, sources: Iterable[Prompts], *, text: bool) -> dict[str, list[Row]]:
        """The rows of each source of the evaluation, by its file's name, a second file of the same name as name-2; `text`:
        those that one follows."""
        found: dict[str, list[Row]] = {}
        for source in sources:
            rows = [row for row in source.rows(self.names) if row.get("text") or not text]
            if not rows:
                raise ConfigError(
                    f"evaluation: {source.path} has no text that follows a prompt; set words: to split its texts."
                )
            stem = Path(source.path).stem
            names = (stem, *(f"{stem}-{number}" for number in range(2, len(found) + 3)))
            found[next(name for name in names if name not in found)] = rows  # a-2.jsonl, a.jsonl and another a.jsonl are three
        return found

    def fitting(self, rows: list[Row], loaded: LanguageModel, say: Say) -> list[Row]:
        """The prompts that leave room for a completion."""
        context = context_of(loaded.model.config)
        if context is None:
            return rows
        prompts, said = [row["prompt"] for row in rows], self.training.make().tokenisation
        fits = [len(ids) + self.longest <= context for ids in encode_prompts(loaded.tokenizer, prompts, said)]
        if all(fits):
            return rows
        many = f"{fits.count(False):,} of {len(fits):,} prompts"
        room = f"no room for {self.longest} new tokens in a context of {context}."
        if self.too_long == "error" or not any(fits):
            raise ConfigError(f"max_new_tokens: {many} leave {room} Make it smaller, or set too_long to drop.")
        say(f"Left out {many} that leave {room}")
        return [row for row, fit in zip(rows, fits) if fit]

    def student(self, loaded: LanguageModel) -> Any:
        """What training begins from."""
        return loaded.model

    def warming(self, rows: list[Row]) -> WarmUp | None:
        """A first part under another penalty."""
        return None

    def estimator(self) -> Penalty | str | None:
        """How the divergence is estimated; None: by the exact rule of the regularizer."""
        return self.penalty

    def sampler(self, rows: list[Row], folder: RunFolder) -> Any:
        """The server's, where there is one; None: the trainer's own."""
        if self.server is None:
            return None
        options = self.server.model_dump(exclude={"endpoint"})
        connection = Connection(timeout=options.pop("timeout"), api_key=options.pop("api_key"))
        return ServerSampler(
            CompletionApi(self.server.endpoint, connection),
            group=self.method.make().group,
            max_new_tokens=self.longest,
            push=AdapterPush(folder.path.resolve() / "served"),
            **options,
        )

    def begin(self, rewards: list[Reward], *, text: bool) -> Callable[[RunFolder, Say], OnlineJob]:
        """Prompts are read, and what is wrong with them is refused; the result opens the models."""
        if self.penalty is not None and PENALTIES[self.penalty].needs == "vocabulary":
            local = [each for each in self.references if each.model is not None]  # a server is refused by name later
            check_apart({each.name: References({each.name: each.opens()}).open(each.name) for each in local})
        rows = self.rows()
        held_out = {} if self.evaluation is None else self.held_out(self.evaluation.prompts, text=text)
        return lambda folder, say: self._job(rows, rewards, held_out, folder, say)

    def _job(
        self, rows: list[Row], rewards: list[Reward], held_out: dict[str, list[Row]], folder: RunFolder, say: Say
    ) -> OnlineJob:
        self.say_memory(say)
        loaded = load(self.model)
        loaded = replace(loaded, model=self.student(loaded))
        rows, *others = (self.fitting(some, loaded, say) for some in (rows, *held_out.values()))
        held_out = dict(zip(held_out, others))
        say(f"{len(rows):,} prompts; references: {', '.join(self.names)}.")
        settled = self.settled(folder, say)
        trainer = OnlineTrainer(
            replace(loaded, model=self.adapted(loaded, with_lora)),
            self.pool(),
            beta=self.beta,
            references=References({each.name: each.opens() for each in settled}, dtype=self.model.dtype or "float32"),
            prompts=rows,
            args=self.training.make(),
            rewards=rewards,
            rule=Rule(
                self.method.make(),
                self.estimator(),
                None if self.adaptive_beta is None else self.adaptive_beta.make(),
                self.sampler(rows, folder),
                self.warming(rows),
            ),
        )
        say(trainer.describe())
        return OnlineJob(self, trainer, held_out, folder, say)


class OnlineJob:
    """An `OnlineTrainer` with figures on held-out prompts before and after, which evaluation.json keeps."""

    def __init__(
        self, run: RolloutRun, trainer: OnlineTrainer, held_out: Mapping[str, list[Row]], folder: RunFolder, say: Say
    ) -> None:
        self.run, self.held_out, self.folder, self.say = run, held_out, folder, say
        self.trainer: Any = trainer
        self.figures: dict[str, Figures] = folder.read("evaluation.json", dict)
        self.known: dict[str, Any] = {}

    def train(self, checkpoint: Path | None) -> None:
        if "before" not in self.figures:
            self._evaluate("before")
        self.trainer.train(folder=self.folder.checkpoints, resume=checkpoint or False, listener=self._listen)
        self._evaluate("after")

    def _listen(self, step: int, line: dict[str, float]) -> None:
        self.folder.append_metrics(line)
        parts = [f"{label} {line[key]:.4g}" for key, label in SHOWN.items() if key in line]
        self.say(f"step {step}/{self.trainer.args.steps}  {'  '.join(parts)}")

    def _evaluate(self, when: str) -> None:
        if self.run.evaluation is None:
            return
        figures = self.figures[when] = self.run.evaluation.figures(self.trainer, self.held_out, self.known)
        self.say(f"{when}: " + "  ".join(f"{name} {figure_text(*value)}" for name, value in figures.items()))
        self.folder.write("evaluation.json", json.dumps(self.figures, indent=1))

    def finish(self) -> tuple[Facts, Callable[[Path], None]]:
        run, trainer = self.run, self.trainer
        rule, *more = trainer.describe().splitlines()
        routed = any(source.weights for source in run.prompts)
        after = self.figures.get("after", {})
        rows = [[name, figure_text(*self.figures["before"][name]), figure_text(*value)] for name, value in after.items()]
        begun = [each.path for each in run.begins_as]
        base = begun[0] if len(begun) == 1 else f"the product of {', '.join(begun)}"
        facts = Facts(
            asked=f"{base}, {run.task} against {run.counted}",
            base=base,
            objective=rule,
            formula=f"maximise {'' if run.task == 'distill' else 'E_π[r] '}− β {run.pool().formula}",
            data=f"{', '.join(public(source.path) for source in run.prompts)} ({len(trainer.rows):,} prompts)",
            beta=trainer.beta,  # where it came to rest, of one that moves
            references={
                name: (source, "of each prompt" if routed else weight) for name, (source, weight) in run.shown().items()
            },
            metrics={name: value[0] for name, value in after.items()},
            curves={
                "reward": ("reward", "objective"),
                "Σ_k w_k KL(π‖π_k) and each, nats per completion": ("kl", "kl/*"),
                "divergence per token": ("divergence/per_token",),
                "tokens per completion": ("completions/mean_length",),
            },
            limits=(*more, "Numbers of training are of the prompts that are trained on; kl is sampled, not exact."),
            tables=[Table(("on held-out prompts", "before", "after"), rows, caption="Means over prompts, 95 % intervals.")]
            if rows
            else [],
        )

        return facts, lambda target: save_whole(self.trainer.model, self.trainer.tokenizer, target)

    def remember(self) -> Kept:
        trainer = self.trainer
        rollouts = sample_few(trainer, [row for rows in self.held_out.values() for row in rows] or trainer.rows)
        return rows_of_rollouts(rollouts, trainer.tokenizer, trainer.args.tokenisation).remember(
            trainer.model, trainer.tokenizer
        )

    def release(self) -> None:
        self.trainer.accelerator.free_memory()
        self.trainer = None


class OnlineRun(RolloutRun):
    """Policy-gradient training of E_π[r] − β Σ_k w_k D(π‖π_k).

    rewards: added up, each with its weight. {kind: win_rate, judge: {…}} plays a game (docs/nash.md).
    clip: {rule: reward | objective, tau, reward_range, disagreement}, or biased: true, of the log-ratio to the pool
    (docs/online.md): another penalty.
    """

    MOVED: ClassVar = {
        "warm_up": "expected only with task: distill; its states are no samples of the policy, and a reward on them is biased.",
        "text_share": "completions that the policy did not sample are for task: distill alone; other rules would be biased.",
        "start": "another start than the model is for task: distill.",
    }

    task: Literal["online"]
    rewards: list[RewardSetting] = Field(default_factory=list)
    clip: ClipSetting | None = None
    evaluation: OnlineEvaluation | None = None

    @model_validator(mode="after")
    def _rewarded(self) -> Self:
        if not self.rewards:
            raise ValueError("rewards: expected at least one; without a reward it is distillation, task: distill.")
        sources = [*self.prompts, *(self.evaluation.prompts if self.evaluation else [])]
        without = [source.path for source in sources if source.kind != "gsm8k" or source.words is not None]
        if without and any(each.kind == "gsm8k" for each in self.rewards):
            raise ValueError(
                f"rewards: gsm8k needs the answer of each problem, which prompts of {without[0]} do not have; expected kind: "
                "gsm8k, without words."
            )
        right = any(each.kind == "gsm8k" or getattr(each, "name", "") == "correctness" for each in self.rewards)
        if self.evaluation is not None and self.evaluation.k != [1] and not right:
            raise ValueError("evaluation: k: pass@k counts right answers, and no reward here says what is right; leave it out.")
        if any(each.kind == "win_rate" for each in self.rewards):
            method = self.method.make()
            try:
                WinRate.check_baseline(method)
            except ValueError as error:
                raise ValueError(f"method: {error}") from None
            if self.evaluation is not None and len(self.rewards) == 1:
                raise ValueError(
                    "evaluation: a policy wins against itself half of the time, before and after; add a reward to look at, "
                    "with weight: 0, or leave evaluation out."
                )
            if self.evaluation is not None and self.evaluation.samples % method.group:
                raise ValueError(
                    f"evaluation: samples: found {self.evaluation.samples}, expected a multiple of the method's group, "
                    f"{method.group}: win rates are within groups."
                )
        return self

    @model_validator(mode="after")
    def _penalised(self) -> Self:
        named = [key for key in ("penalty", "adaptive_beta", "clip") if getattr(self, key) is not None]
        if self.beta == 0 and named:
            raise ValueError(f"{named[0]}: found it beside beta: 0, at which there is no penalty; leave it out, or raise beta.")
        if self.clip is None:
            return self
        if self.penalty is not None:
            raise ValueError(f"clip: it is a penalty of its own; found penalty: {self.penalty} beside it, keep one.")
        made = self.clip.make()
        try:
            made.check(self.pool())
            made.check_strength(self.beta, moves=self.adaptive_beta is not None)
        except ValueError as error:
            raise ValueError(f"clip: tau: {error}" if "τ" in str(error) else f"regularizer: {error}") from None
        return self

    def estimator(self) -> Penalty | str | None:
        return self.penalty if self.clip is None else self.clip.make()

    def ready(self) -> Callable[[RunFolder, Say], OnlineJob]:
        return self.begin(make_rewards(self.rewards, group=self.method.make().group), text=False)
