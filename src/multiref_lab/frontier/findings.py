"""All that a sweep found: values by task, rule and weight, seed by seed; J at every weight from reward and KL,
in which it is linear."""

import functools
import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import numpy as np

from multiref.divergences import disagreement
from multiref.evaluation import Inspection
from multiref.regularizers import ReverseKL
from multiref_lab.demo import Yardstick
from multiref_lab.experiment import Record
from multiref_lab.frontier.ends import optimum
from multiref_lab.frontier.generated import GeneratedBench
from multiref_lab.frontier.grid import Cell, cell_at, rule_at
from multiref_lab.frontier.settings import FrontierSettings
from multiref_lab.frontier.sweep import Training
from multiref_lab.stats import Difference, Measure, paired

FEW = 24  # prompts on which Multi-DPO's optimum is computed


@dataclass(frozen=True)
class Plane:
    """What is compared: a task at one β and one number of pairs."""

    task: str
    beta: float
    pairs: int

    @property
    def title(self) -> str:
        return f"{self.task}, β = {self.beta:g}" + (f", {self.pairs:,} pairs" if self.pairs else "")


@dataclass(frozen=True)
class Place:
    """Where the exact optimum of the objective, or of a rule, lies: E_π[r], KL to each reference,
    J at the weight and β it is for, KL(π‖π*)."""

    reward: float
    kl: tuple[float, float]
    J: float
    gap: float

    def price(self, weight: float) -> float:
        """Σ_k w_k KL(π‖π_k)."""
        return weight * self.kl[0] + (1 - weight) * self.kl[1]


@dataclass(frozen=True, eq=False)
class Findings:
    """Records of all cells, and the questions that tables and figures ask of them."""

    training: Training
    records: tuple[Record[Cell, dict[str, float]], ...]

    @property
    def settings(self) -> FrontierSettings:
        return self.training.settings

    @cached_property
    def by_cell(self) -> dict[Cell, dict[str, float]]:
        return {record.cell: record.found for record in self.records}

    @property
    def planes(self) -> list[Plane]:
        """Every task at every β and size."""
        every = self.settings.tasks.items()
        return [
            Plane(name, float(beta), pairs)
            for name, task in every
            for beta in task.betas
            for pairs in self.settings.sizes(task)
        ]

    @property
    def weights(self) -> list[float]:
        """0, 1 and the weights asked for, in order."""
        return sorted({0.0, 1.0, *map(float, self.settings.weights)})

    def names(self, task: str) -> tuple[str, str]:
        """The two references; the weight is that of the first."""
        numbers = next(record.found for record in self.records if record.cell.task == task)
        one, two = (name[3:] for name in numbers if name.startswith("kl/") and not name.endswith("±"))
        return one, two

    def trained(self, plane: Plane, rule: str, weight: float) -> "Trained":
        """The runs of a rule at a weight, by seed; at 0 and 1 the single reference's."""
        training, seeds = self.settings.training, range(self.settings.seeds)
        cells = (cell_at(plane.task, training, rule, weight, plane.beta, plane.pairs, seed) for seed in seeds)
        return Trained(self, plane, rule, weight, [self.by_cell[cell] for cell in cells])

    def enumerated(self, task: str) -> bool:
        """Whether answers can be enumerated: then optima are computed, beside what is trained."""
        return task == "generated"

    def best(self, plane: Plane, weight: float, *, beta: float | None = None) -> Place | None:
        """π* of this weight; None where answers cannot be enumerated."""
        return self.end(plane, "exact", weight, beta=beta)

    def end(self, plane: Plane, rule: str, weight: float, *, beta: float | None = None) -> Place | None:
        """Where `rule` comes to rest if trained perfectly, measured by the objective of its weight;
        None where answers cannot be enumerated."""
        return (
            _end(self, plane.task, rule, weight, plane.beta if beta is None else beta) if self.enumerated(plane.task) else None
        )

    def best_reward(self, plane: Plane, weight: float, price: float) -> float:
        """Reward of the exact optimum (over all β) whose price is this; linear between 80 values of β,
        so a little low (< 1e-3)."""
        found = [self.best(plane, weight, beta=plane.beta * 2 ** (step / 8)) for step in range(-48, 33)]
        places = [(place.price(weight), place.reward) for place in reversed(found) if place is not None]
        prices, rewards = zip(*places, strict=True)
        return float(np.interp(price, prices, rewards, left=math.nan))

    def disagreement(self, task: str, weight: float) -> float | None:
        """−log F, nats per completion: the least weighted KL that any policy has; None where answers cannot be enumerated."""
        if not self.enumerated(task):
            return None
        return float(disagreement(self.generated(task).answers.ref_logps, (weight, 1 - weight)).mean())

    def inspection(self, plane: Plane) -> Inspection | None:
        """What `multiref inspect` says of the first seed's pairs; None for online training, which has none."""
        return self.training.bench(plane.task).inspection(plane.pairs) if plane.pairs else None

    def generated(self, task: str) -> GeneratedBench:
        """The bench of a task whose answers are enumerated."""
        return cast(GeneratedBench, self.training.bench(task))


@functools.cache
def _end(findings: Findings, task: str, rule: str, weight: float, beta: float) -> Place:
    answers, training = findings.generated(task).answers, findings.settings.training
    few = slice(0, FEW if rule == "multi-dpo" and weight not in (0, 1) else None)
    answers = replace(answers, skills=answers.skills[few], reward=answers.reward[few], ref_logps=answers.ref_logps[:, few])
    size = len(findings.generated(task).world.vocabulary)
    ends_at = optimum(training, rule_at(rule, weight), weight, answers.reward, answers.ref_logps, beta=beta, vocabulary=size)
    found = Yardstick(answers, ReverseKL((weight, 1 - weight)), beta).measure(ends_at)
    one, two = answers.names
    return Place(found["reward"], (found[f"kl/{one}"], found[f"kl/{two}"]), found["J"], found["gap"])


@dataclass(frozen=True, eq=False)
class Trained:
    """The runs of one rule at one weight, by seed. `at`: the weight whose objective they are measured by; None: their own."""

    findings: Findings
    plane: Plane
    rule: str
    weight: float
    runs: list[dict[str, float]]

    def values(self, number: str, *, at: float | None = None) -> list[float]:
        """A number by seed. "J" is the objective, "price" Σ_k w_k KL(π‖π_k)."""
        if number not in ("J", "price"):
            return [run[number] for run in self.runs]
        weight, (one, two) = self.weight if at is None else at, self.findings.names(self.plane.task)
        prices = [weight * run[f"kl/{one}"] + (1 - weight) * run[f"kl/{two}"] for run in self.runs]
        if number == "price":
            return prices
        return [run["reward"] - self.plane.beta * price for run, price in zip(self.runs, prices, strict=True)]

    def measure(self, number: str, *, at: float | None = None) -> Measure:
        """Its mean and standard error over seeds."""
        return Measure.of(self.values(number, at=at))

    def against_exact(self, number: str, *, at: float) -> Difference:
        """Less the exact rule's at this weight, seed by seed."""
        return paired(self.values(number, at=at), self.findings.trained(self.plane, "exact", at).values(number, at=at))

    def missing(self, *, at: float | None = None) -> list[float] | None:
        """J* − J by seed; None where answers cannot be enumerated."""
        best = self.findings.best(self.plane, self.weight if at is None else at)
        return None if best is None else [best.J - value for value in self.values("J", at=at)]

    def missed(self, *, at: float | None = None) -> list[float]:
        """By seed: the largest reward that any policy has at this one's Σ_k w_k KL, less its own.
        Empty where answers cannot be enumerated."""
        if not self.findings.enumerated(self.plane.task):
            return []
        weight = self.weight if at is None else at
        both = zip(self.values("price", at=weight), self.values("reward"), strict=True)
        return [self.findings.best_reward(self.plane, weight, price) - reward for price, reward in both]
