"""The demo itself: world, pairs, scores, then every rule under every seed, each measured exactly. Finished parts are kept and reused."""

from __future__ import annotations

import copy
import json
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from multiref._files import write_whole
from multiref.errors import OutputError
from multiref.models import Tokenisation
from multiref.references import References
from multiref.regularizers import ReverseKL
from multiref.training import PreferenceData, PreferenceTrainer
from multiref.training.arguments import LogLines, quiet, silence, training_arguments
from multiref_lab.demo.authors import one_thread
from multiref_lab.demo.preferences import draw_pairs
from multiref_lab.demo.rules import Rule, rules
from multiref_lab.demo.settings import DemoSettings
from multiref_lab.demo.world import BASE, World, make
from multiref_lab.demo.yardstick import Yardstick

__all__ = ["Findings", "Listener", "Run", "run"]


class Listener(Protocol):
    """Told what happens, in sentences and in steps."""

    def phase(self, sentence: str) -> None: ...

    def progress(self, what: str, done: int, of: int) -> None: ...


@dataclass(frozen=True)
class Run:
    """One rule under one seed: the numbers at the end, and the way there (pairs seen → numbers on fewer prompts)."""

    rule: str
    seed: int
    numbers: dict[str, float]
    curve: list[dict[str, float]]
    seconds: float


@dataclass(frozen=True)
class Findings:
    """All that the report shows. `given`: untouched models and the exact optimum; `ends`: each rule's own exact optimum, on the common yardstick;
    `missed`: by rule and seed, the reward that the same weighted KL could have bought less the reward reached."""

    settings: DemoSettings
    rules: list[Rule]
    runs: dict[str, list[Run]]
    given: dict[str, dict[str, float]]
    ends: dict[str, dict[str, float]]
    missed: dict[str, list[float]]
    frontier: list[tuple[float, float]]
    disagreement: float
    answers: int


def run(settings: DemoSettings, output: Path, cache: Path | None, told: Listener) -> Findings:
    """Everything from nothing to `Findings`; results already in `output` for the same settings and code are reused.

    Errors: OutputError where a folder cannot be written; ModelError for a damaged cached world.
    """
    quiet()
    results = _folder(output / "results")
    with one_thread():
        return _run(settings, output, results, cache, told)


def _run(settings: DemoSettings, output: Path, results: Path, cache: Path | None, told: Listener) -> Findings:
    told.phase(
        "Making the world: a base model that answers two kinds of word problems badly, and two specialists, each good at one kind "
        "(kept for the next time)."
    )
    world = make(cache, settings.world, progress=told.progress)
    asked = ReverseKL(settings.weights)
    told.phase("Solving the problem exactly on held-out prompts: every answer is enumerated, so the optimum π* is known.")
    yardstick = _yardstick(world, settings, asked, settings.held_out_prompts)
    stretch = _yardstick(world, settings, asked, min(40, settings.held_out_prompts))
    compared, digest = rules(settings.weights), settings.digest()
    runs: dict[str, list[Run]] = {rule.name: [] for rule in compared}
    for seed in range(settings.seeds):
        bench = _Bench(world, settings, output, seed, yardstick, stretch, told)
        for rule in compared:
            path = results / f"{digest}-{_slug(rule.name)}-seed{seed}.json"
            runs[rule.name].append(_kept(path, rule, seed) or _finished(path, bench, rule))
    return _findings(world, settings, yardstick, compared, runs)


class _Bench:
    """What the rules of one seed share: pairs, scores, measures. The pairs are made only if a rule still has to be trained."""

    def __init__(
        self, world: World, settings: DemoSettings, output: Path, seed: int, full: Yardstick, stretch: Yardstick, told: Listener
    ) -> None:
        self.world, self.settings, self.output, self.seed = world, settings, output, seed
        self.full, self.stretch, self.told = full, stretch, told
        self.problems = world.problems(settings.held_out_prompts, 0, held_out=True)
        self._data: PreferenceData | None = None

    @property
    def data(self) -> PreferenceData:
        if self._data is None:
            seed, seeds = self.seed + 1, self.settings.seeds
            self.told.phase(
                f"Seed {seed} of {seeds}: drawing preference pairs from the references, scoring them once under both."
            )
            pairs = draw_pairs(self.world, self.settings.law, self.seed)
            folders = {name: str(self.world.folder_of(name)) for name in self.world.references}
            scores = References(folders, tokenisation=Tokenisation(end=False), device="cpu").score(
                pairs, store=self.output / "scores"
            )
            self._data = PreferenceData(pairs, scores, self.world.tokenizer, tokenisation=Tokenisation(end=False))
            self.told.phase(
                f"Seed {seed} of {seeds}: training the base model on {len(pairs):,} pairs under {len(_names(self.settings))} rules."
            )
        return self._data

    def train(self, rule: Rule) -> Run:
        """The base model trained under this rule, measured on the way and at the end."""
        began, data, settings = time.perf_counter(), self.data, self.settings
        policy = copy.deepcopy(self.world.base)
        steps = settings.epochs * -(-len(data) // settings.pairs_per_step)
        curve = [self._point(policy, rule, 0)]

        def listen(step: int, last: int, line: dict[str, Any]) -> None:
            self.told.progress(f"seed {self.seed + 1}: {rule.name}", step, last)
            if "loss" in line:
                curve.append(self._point(policy, rule, step) | {"loss": float(line["loss"])})

        with tempfile.TemporaryDirectory(prefix="multiref-demo-") as scratch:
            every = max(1, steps // settings.curve_points)
            trainer = PreferenceTrainer(
                policy,
                rule.regularizer,
                beta=settings.beta,
                args=training_arguments(scratch, _arguments(settings, self.seed, every)),
                train_dataset=data,
                processing_class=self.world.tokenizer,
                tokenisation=Tokenisation(end=False),
                callbacks=[LogLines(listen)],
            )
            silence(trainer)
            trainer.train()
        log_policy = self.world.logps(policy, self.problems)
        numbers = self.full.measure(log_policy) | self.full.own(log_policy, rule.regularizer)
        return Run(rule.name, self.seed, numbers, curve, time.perf_counter() - began)

    def _point(self, policy: Any, rule: Rule, step: int) -> dict[str, float]:
        log_policy = self.world.logps(policy, self.problems[: len(self.stretch.skills)])
        numbers = self.stretch.measure(log_policy)
        seen = {"pairs": float(step * self.settings.pairs_per_step), "J": numbers["J"], "gap": numbers["gap"]}
        return seen | self.stretch.own(log_policy, rule.regularizer)


def _arguments(settings: DemoSettings, seed: int, every: int) -> dict[str, Any]:
    return {
        "per_device_train_batch_size": settings.pairs_per_step,
        "num_train_epochs": settings.epochs,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 20,
        "adam_beta2": 0.98,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "logging_steps": every,
        "save_strategy": "no",
        "use_cpu": True,
        "seed": seed,
    }


def _yardstick(world: World, settings: DemoSettings, asked: ReverseKL, prompts: int) -> Yardstick:
    problems = world.problems(settings.held_out_prompts, 0, held_out=True)[:prompts]
    return Yardstick.on(world, problems, asked, settings.beta, scale=settings.law.scale)


def _findings(
    world: World, settings: DemoSettings, yardstick: Yardstick, compared: list[Rule], runs: dict[str, list[Run]]
) -> Findings:
    problems = world.problems(settings.held_out_prompts, 0, held_out=True)
    given = {f"{BASE} model, untouched": yardstick.measure(world.logps(world.base, problems))}
    for name, logps in zip(world.references, yardstick.ref_logps, strict=True):
        given[f"{name}, untouched"] = yardstick.measure(logps)
    given["π* (exact optimum)"] = yardstick.measure(yardstick.optimum.log_policy)
    ends = {rule.name: yardstick.measure(yardstick.solution(rule.regularizer).log_policy) for rule in compared}
    missed = {
        name: [yardstick.best_reward(run.numbers["price"]) - run.numbers["reward"] for run in found]
        for name, found in runs.items()
    }
    betas = [settings.beta * 2 ** (step / 4) for step in range(-10, 21)]
    answers = len(world.answers)
    return Findings(settings, compared, runs, given, ends, missed, yardstick.frontier(betas), yardstick.disagreement, answers)


def _kept(path: Path, rule: Rule, seed: int) -> Run | None:
    """A finished result of an earlier run; None where there is none, or it cannot be read (it is made anew)."""
    try:
        found = Run(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return found if (found.rule, found.seed) == (rule.name, seed) else None


def _finished(path: Path, bench: _Bench, rule: Rule) -> Run:
    result = bench.train(rule)
    write_whole(path, json.dumps(result.__dict__, indent=1))
    return result


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OutputError(
            f"cannot write to the output folder {path}: {error.strerror or error}; choose another with --output"
        ) from error
    return path


def _names(settings: DemoSettings) -> list[str]:
    return [rule.name for rule in rules(settings.weights)]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
