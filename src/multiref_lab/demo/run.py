"""The demo itself: a world, then every rule under every seed, each trained and measured exactly.
Finished runs are kept and reused."""

import copy
import dataclasses
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

from transformers import PreTrainedModel

from multiref.regularizers import ReverseKL
from multiref.training import Preference, PreferenceData, quiet
from multiref_lab.demo.authors import BASE
from multiref_lab.demo.corpus import Problem
from multiref_lab.demo.preferences import draw_pairs
from multiref_lab.demo.settings import DemoSettings, Rule, rules
from multiref_lab.demo.training import train_on_pairs
from multiref_lab.demo.world import World, make
from multiref_lab.demo.yardstick import Answers, Yardstick
from multiref_lab.experiment import Experiment, Listener, one_thread

OPTIMUM = "π* (exact optimum)"


@dataclass(frozen=True)
class Trial:
    """One rule under one seed."""

    rule: str
    seed: int

    @property
    def name(self) -> str:
        return f"{re.sub(r'[^a-z0-9]+', '-', self.rule.lower()).strip('-')}-seed{self.seed}"


class Measured(TypedDict):
    """The numbers at the end, and the way there (pairs seen → numbers on fewer prompts)."""

    numbers: dict[str, float]
    curve: list[dict[str, float]]


@dataclass(frozen=True)
class Findings:
    """All that the report shows. `runs`: by rule, seed after seed; `given`: untouched models and the exact optimum; `ends`:
    each rule's own exact optimum, on the common yardstick; `missed`: by rule and seed, the reward that the same weighted KL
    could have bought less the reward reached."""

    settings: DemoSettings
    rules: list[Rule]
    runs: dict[str, list[Measured]]
    given: dict[str, dict[str, float]]
    ends: dict[str, dict[str, float]]
    missed: dict[str, list[float]]
    frontier: list[tuple[float, float]]
    disagreement: float
    answers: int


def run(settings: DemoSettings, output: Path, cache: Path | None, told: Listener) -> Findings:
    """Everything from nothing to `Findings`; records already in `output` for the same settings and code are reused.

    Errors: OutputError where a folder cannot be written; ModelError for a damaged cached world.
    """
    quiet()
    training = _Training(settings, output, cache, told)
    trials = [Trial(rule, seed) for seed in range(settings.seeds) for rule in training.rules]
    own = dataclasses.asdict(dataclasses.replace(settings, seeds=1))
    with one_thread():
        records = Experiment(output / "records", trials, training, given=lambda trial: own).run()
        runs = {rule: [records[Trial(rule, seed)].found for seed in range(settings.seeds)] for rule in training.rules}
        return _findings(training, runs)


class _Training:
    """Trains and measures a trial.
    The world, the measures, and the pairs of a seed are shared; pairs are made only where a rule is still to be trained."""

    def __init__(self, settings: DemoSettings, output: Path, cache: Path | None, told: Listener) -> None:
        self.settings, self.output, self.cache, self.told = settings, output, cache, told
        self.rules = {rule.name: rule for rule in rules(settings.weights)}
        self._data: dict[int, PreferenceData] = {}

    def __call__(self, trial: Trial) -> Measured:
        """The base model trained under the trial's rule, measured on the way and at the end."""
        settings, rule = self.settings, self.rules[trial.rule]
        full, data = self.full, self.data(trial.seed)
        policy = copy.deepcopy(self.world.base)
        steps = settings.epochs * -(-len(data) // settings.pairs_per_step)
        curve = [self._point(policy, rule, 0)]

        def listen(step: int, last: int, line: dict[str, Any]) -> None:
            self.told.progress(f"seed {trial.seed + 1}: {rule.name}", step, last)
            if "loss" in line:
                curve.append(self._point(policy, rule, step) | {"loss": float(line["loss"])})

        arguments = {
            "per_device_train_batch_size": settings.pairs_per_step,
            "num_train_epochs": settings.epochs,
            "learning_rate": settings.learning_rate,
            "logging_steps": max(1, steps // settings.curve_points),
            "seed": trial.seed,
        }
        objective = Preference(rule.regularizer, settings.beta)
        train_on_pairs(policy, objective, data, self.world.tokenizer, arguments=arguments, listen=listen)
        log_policy = self.world.logps(policy, self.problems)
        return Measured(numbers=full.measure(log_policy) | full.own(log_policy, rule.regularizer), curve=curve)

    @cached_property
    def world(self) -> World:
        self.told.phase(
            "The world, made once and kept: a base model that answers two kinds of word problems badly, and two specialists, "
            "each good at one kind."
        )
        return make(self.cache, self.settings.world, progress=self.told.progress)

    @cached_property
    def problems(self) -> list[Problem]:
        return self.world.problems(self.settings.held_out_prompts, 0, held_out=True)

    @cached_property
    def full(self) -> Yardstick:
        """On all held-out prompts."""
        world = self.world
        self.told.phase("Solving the problem exactly on held-out prompts: every answer is enumerated, so π* is known.")
        return self._yardstick(world, self.problems)

    @cached_property
    def stretch(self) -> Yardstick:
        """On a few of them, for the way there."""
        return self._yardstick(self.world, self.problems[:40])

    def _yardstick(self, world: World, problems: list[Problem]) -> Yardstick:
        s = self.settings
        return Yardstick(Answers.of(world, problems, scale=s.law.scale), ReverseKL(s.weights), s.beta)

    def data(self, seed: int) -> PreferenceData:
        if seed not in self._data:
            which = f"Seed {seed + 1} of {self.settings.seeds}"
            self.told.phase(f"{which}: drawing preference pairs from the references, scoring them once under both.")
            pairs = draw_pairs(self.world, self.settings.law, seed)
            self._data = {seed: self.world.data(pairs, self.output / "scores")[1]}
            self.told.phase(f"{which}: training the base model on {len(pairs):,} pairs under {len(self.rules)} rules.")
        return self._data[seed]

    def _point(self, policy: PreTrainedModel, rule: Rule, step: int) -> dict[str, float]:
        log_policy = self.world.logps(policy, self.problems[:40])
        numbers = self.stretch.measure(log_policy)
        seen = {"pairs": float(step * self.settings.pairs_per_step), "J": numbers["J"], "gap": numbers["gap"]}
        return seen | self.stretch.own(log_policy, rule.regularizer)


def _findings(training: _Training, runs: dict[str, list[Measured]]) -> Findings:
    world, yardstick, settings = training.world, training.full, training.settings
    laws = {f"{BASE} model, untouched": world.logps(world.base, training.problems)}
    laws |= {f"{name}, untouched": ref for name, ref in zip(world.references, yardstick.answers.ref_logps, strict=True)}
    given = {name: yardstick.measure(law) for name, law in (laws | {OPTIMUM: yardstick.optimum.log_policy}).items()}
    compared = list(training.rules.values())
    return Findings(
        settings,
        compared,
        runs,
        given,
        ends={rule.name: yardstick.measure(yardstick.solution(rule.regularizer).log_policy) for rule in compared},
        missed={
            name: [yardstick.best_reward(run["numbers"]["price"]) - run["numbers"]["reward"] for run in found]
            for name, found in runs.items()
        },
        frontier=yardstick.frontier([settings.beta * 2 ** (step / 4) for step in range(-10, 21)]),
        disagreement=yardstick.disagreement,
        answers=len(world.answers),
    )
