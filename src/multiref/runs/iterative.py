"""`task: iterative`: labels are bought as training goes, by a method (bilevel, or an iterative peer), from an oracle,
within a budget."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from multiref.errors import ConfigError, DataError
from multiref.models import load
from multiref.runs.base import Facts, PooledRun, Say
from multiref.runs.folder import RunFolder
from multiref.runs.pairs import Privacy
from multiref.runs.prompts import Prompts, Row
from multiref.runs.rewards import JUDGES, Judged, OwnOrNamed
from multiref.runs.strict import Arguments, ReadAs, arguments_of, one_of
from multiref.training.iterative import (
    METHODS,
    HumanLabels,
    Oracle,
    Plan,
    PrivateOracle,
    TextSetting,
    TextWorld,
    sample_rollouts,
    save_policy,
    text_task,
    train,
    with_adapter,
)
from multiref.training.iterative.loop import Method
from multiref.training.saved import ROWS, Kept, rows_of_rollouts

SHOWN = {
    "true objective": "the hidden reward less β times the penalty, on fresh rollouts: what the run is for",
    "hidden reward": "the reward behind the oracle, on fresh rollouts; the method never sees it",
    "reward error here": "standard deviation of the learnt reward's error under the current policy",
    "reward error at start": "the same under the policy that training began with: the difference is the shift of distribution",
    "upper loss": "cross-entropy of the fresh labels under the learnt reward (for win_rate the share of lost comparisons)",
    "loss": "the last step's loss on labelled pairs",
    "reward loss": "cross-entropy of the labels so far under the learnt reward",
    "hypergradient norm": "norm of the outer step's estimate",
    "kl/*": "KL of the policy to each reference, nats",
}


@dataclass(frozen=True)
class People:
    """A person, through JSONL files in `folder`; `wait`: seconds to wait for labels before the run stops, to be run again."""

    folder: str
    wait: Annotated[float, Field(ge=0)] = 0.0
    hidden: ClassVar[None] = None

    def oracle(self, world: TextWorld) -> Oracle:
        return HumanLabels(self.folder, world.decode, wait=self.wait)


Answers = Judged | People  # who answers, and the hidden reward behind it, to be reported and never shown to the method
ORACLES: dict[str, Callable[..., Any]] = {**JUDGES, "human_labels": People}
MethodSetting = Annotated[Arguments[Method], ReadAs(one_of("name", METHODS, without={"name"}))]
PlanSetting = Annotated[Arguments[Plan], ReadAs(arguments_of(Plan, without={"labels"}, check=False))]
_ORACLE = one_of("kind", ORACLES, base=OwnOrNamed, check=False, renamed={"exchange": "human_labels"})
OracleSetting = Annotated[OwnOrNamed[Answers], ReadAs(_ORACLE)]


def _counts(labels: Any) -> Any:
    """Cumulative counts at the ends of rounds, from {each, rounds}."""
    if not isinstance(labels, dict):
        return labels
    each, rounds = labels.get("each", 0), labels.get("rounds", 0)
    if set(labels) != {"each", "rounds"} or not all(type(n) is int and n > 0 for n in (each, rounds)) or rounds > 10**5:
        raise ValueError(f"found {labels!r}, expected growing cumulative counts, or {{each: 64, rounds: 16}}.")
    return [each * (k + 1) for k in range(rounds)]


class IterativeRun(PooledRun):
    """A run that buys labels.

    prompts: a .jsonl with `prompt` or `text` a line, of which the first prompt_words words are taken,
    and at most `limit` lines. oracle: {kind: lexicon, path, temperature}, {kind: reward_model, path, temperature}, {kind:
    python, path, name}, a judge of two completions of your own, or {kind: human_labels, folder, wait}.
    privacy: {epsilon}: each answer is flipped at random before the method sees it (docs/private-preferences.md).
    method: {name, options…}, see `multiref.training.iterative.METHODS`.
    labels: cumulative counts at the ends of rounds, or {each, rounds} for rounds of equally many.
    plan: what `multiref.training.iterative.Plan` takes besides. held_out: completions drawn for each measurement.
    """

    task: Literal["iterative"]
    beta: float = Field(gt=0)
    prompts: str
    oracle: OracleSetting
    method: MethodSetting
    labels: Annotated[list[int], BeforeValidator(_counts, json_schema_input_type=list[int] | dict[str, int])]
    plan: PlanSetting = Field(default={}, validate_default=True)
    prompt_words: int = Field(default=12, gt=0)
    limit: int = Field(default=64, gt=0)
    max_new_tokens: int = Field(default=24, gt=0)
    held_out: int = Field(default=128, gt=0)
    privacy: Privacy | None = None

    @model_validator(mode="after")
    def _planned(self) -> Self:
        self.planned()  # refuses labels and numbers that no plan has
        method, rounds = self.method.make(), [b - a for a, b in pairwise([0, *self.labels])]
        least = getattr(method, "least", 1)
        if odd := [labels for labels in rounds if labels % least]:
            raise ValueError(
                f"labels: found a round of {odd[0]}, expected multiples of {least}: what this method has labelled of a prompt."
            )
        if self.privacy is not None and isinstance(method, (METHODS["bilevel"], METHODS["sail"])):
            raise ValueError(f"privacy: {method.name} has a loss of its own, which takes labels as they are, flips and all.")
        if any(each.tokenisation is not None for each in self.references):
            raise ValueError("references: tokenisation: they score the token ids that the policy sampled; leave it out.")
        return self

    @property
    def first_seed(self) -> int:
        """As the plan has it."""
        return self.planned().seed

    def planned(self) -> Plan:
        """The plan with its labels."""
        return self.plan.make(labels=self.labels)

    def rows(self) -> list[Row]:
        """The prompts, as far as they are taken."""
        return Prompts(path=self.prompts, limit=self.limit, words=self.prompt_words).rows()

    def ready(self) -> Callable[[RunFolder, Say], IterativeJob]:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError("task: iterative runs in one process; start it without a launcher.")
        rows = self.rows()
        if talk := next((row["prompt"] for row in rows if not isinstance(row["prompt"], str)), None):
            raise DataError(f"{self.prompts}: found {len(talk)} messages; a run that buys labels takes texts as prompts.")
        answers = self.oracle.make()
        return lambda folder, say: self._job(rows, answers, folder, say)

    def asked(self, answers: Answers, world: TextWorld) -> Oracle:
        """Who answers, flipped where labels are private."""
        oracle = answers.oracle(world)
        return oracle if self.privacy is None else PrivateOracle(oracle, self.privacy.epsilon)

    def _job(self, rows: list[Row], answers: Answers, folder: RunFolder, say: Say) -> IterativeJob:
        self.say_memory(say)
        if cut := sum("text" in row for row in rows):
            say(f"{cut:,} of {len(rows):,} prompts are their first {self.prompt_words} words (prompt_words).")
        loaded, settled = load(self.model), self.settled(folder, say)
        task = text_task(
            replace(loaded, model=self.adapted(loaded, partial(with_adapter, seed=self.first_seed))),
            {each.name: load(each.local("a run that buys labels scores its references here")) for each in settled},
            self.pool(),
            beta=self.beta,
            prompts=[row["prompt"] for row in rows],
            oracle=partial(self.asked, answers),
            setting=TextSetting(
                max_new_tokens=self.max_new_tokens,
                hidden=answers.hidden,
                held_out=self.held_out,
                seed=self.planned().seed,
            ),
        )
        return IterativeJob(self, task, folder, say)


class IterativeJob:
    """The rounds; their state stands in checkpoints/, and goes on from there."""

    def __init__(self, run: IterativeRun, task: Any, folder: RunFolder, say: Say) -> None:
        self.run, self.task, self.folder, self.say = run, task, folder, say
        self.method = run.method.make()
        self.state: Any = None

    def train(self, checkpoint: Path | None) -> None:
        labels = self.run.labels
        self.say(f"{self.method.name}: {labels[-1]} labels over {len(labels)} rounds, {len(self.run.references)} references")
        self.state, history = train(
            self.task, self.method, self.run.planned(), folder=self.folder.checkpoints, listener=self._listen
        )
        self.folder.write_metrics([_line(each) for each in history.lines])

    def _listen(self, line: Mapping[str, Any]) -> None:
        """One line a round: what was bought, how long it took, what was measured."""
        rounds = (self.folder.checkpoints / "history.jsonl").read_text(encoding="utf-8").splitlines()
        self.folder.write_metrics([_line(json.loads(each)) for each in rounds])
        measured = {key: value[0] for key, value in line.items() if isinstance(value, list) and "standard error" not in key}
        said = [f"{key} {value:.3g}" for key, value in measured.items()]
        self.say("  ".join([f"{line['labels']}/{self.run.labels[-1]} labels", f"{line['wall']:.0f} s", *said]))

    def finish(self) -> tuple[Facts, Callable[[Path], None]]:
        run, lines = self.run, self.folder.read_metrics()
        error = "true objective, standard error"
        first, last = (lines[n].get(error, float("nan")) for n in (0, -1))
        spread = f"Standard error of the true objective: {first:.2g} at the start, {last:.2g} at the end."
        facts = Facts(
            asked=f"{self.method.name}: {run.labels[-1]} labels",
            base=run.model.path,
            objective=f"{self.method.name}: {run.labels[-1]} labels over {len(run.labels)} rounds",
            formula=f"maximise E_π[r] − β {run.pool().formula},  r learnt from the labels",
            data=f"{run.prompts} ({self.task.prompts:,} prompts)",
            beta=run.beta,
            references=run.shown(),
            curves={f"{name.removesuffix('/*')}: {caption}": (name,) for name, caption in SHOWN.items()},
            limits=("The axis of the curves is labels bought.", *([spread] if error in lines[-1] else [])),
        )
        return facts, lambda target: save_policy(self.state.policy, target)

    def remember(self) -> Kept:
        policy = self.state.policy
        rows = rows_of_rollouts(sample_rollouts(policy, ROWS), policy.world.tokenizer, policy.world.tokenisation)
        return rows.remember(policy.worn(), policy.world.tokenizer)

    def release(self) -> None:
        self.state = self.task = None


def _line(line: Mapping[str, Any]) -> dict[str, Any]:
    """As metrics.jsonl has it: a step is a label, and the one seed needs no list."""
    return {"step": line["labels"], **{key: value[0] if isinstance(value, list) else value for key, value in line.items()}}
