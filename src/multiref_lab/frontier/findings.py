"""All that a sweep found: values by task, rule and weight, seed by seed; J for every α from reward and KL, in which it is linear."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from multiref import exact
from multiref._logspace import expectation
from multiref.divergences import disagreement, kl
from multiref.regularizers import ReverseKL
from multiref.report.noise import Difference, Measure, paired
from multiref_lab.frontier.ends import optimum
from multiref_lab.frontier.generated import GeneratedBench
from multiref_lab.frontier.grid import Cell, cell_at, rule_at
from multiref_lab.frontier.records import Record
from multiref_lab.frontier.settings import FrontierSettings, Generated
from multiref_lab.frontier.work import bench_of

__all__ = ["Findings", "Place", "Plane"]

FEW = 24  # prompts on which Multi-DPO's optimum is computed


@dataclass(frozen=True)
class Plane:
    """What is compared: a task at one β and one number of pairs."""

    task: str
    beta: float
    pairs: int


@dataclass(frozen=True)
class Place:
    """Where the exact optimum of the objective, or of a rule, lies: E_π[r], KL to each reference, J at the α and β it is for, KL(π‖π*)."""

    reward: float
    kl: tuple[float, float]
    J: float
    gap: float


@dataclass(frozen=True, eq=False)
class Findings:
    """Records of all cells, and the questions that tables and figures ask of them."""

    settings: FrontierSettings
    records: tuple[Record, ...]
    cache: Path | None
    shared: Path | None

    @cached_property
    def by_cell(self) -> dict[Cell, Record]:
        return {record.cell: record for record in self.records}

    @property
    def planes(self) -> list[Plane]:
        """Every task at every β and size."""
        offline = self.settings.training == "offline"
        return [
            Plane(name, float(beta), pairs)
            for name, task in self.settings.tasks.items()
            for beta in task.betas
            for pairs in (task.pairs if offline else [0])
        ]

    @property
    def alphas(self) -> list[float]:
        """0, 1 and the weights asked for, in order."""
        return sorted({0.0, 1.0, *map(float, self.settings.weights)})

    def bench(self, task: str) -> Any:
        """The task's bench, for what is computed rather than trained."""
        return bench_of(self.settings.tasks[task], self.cache, self.shared)

    def names(self, task: str) -> tuple[str, str]:
        """The two references; α is the weight of the first."""
        keys = [name[3:] for name in self.records_of(task)[0].numbers if name.startswith("kl/") and not name.endswith("±")]
        return keys[0], keys[1]

    def records_of(self, task: str) -> list[Record]:
        return [record for record in self.records if record.cell.task == task]

    def runs(self, plane: Plane, rule: str, alpha: float) -> list[Record]:
        """By seed; at α = 0 and 1 the single reference's."""
        training, seeds = self.settings.training, range(self.settings.seeds)
        return [self.by_cell[cell_at(plane.task, training, rule, alpha, plane.beta, plane.pairs, seed)] for seed in seeds]

    def values(self, plane: Plane, rule: str, alpha: float, number: str, *, at: float | None = None) -> list[float]:
        """A number by seed. "J" is the objective at weight `at` (default: the α it was trained for), "price" Σ_k w_k KL(π‖π_k) there."""
        if number not in ("J", "price"):
            return [run.numbers[number] for run in self.runs(plane, rule, alpha)]
        weight, (one, two) = alpha if at is None else at, self.names(plane.task)
        found = []
        for run in self.runs(plane, rule, alpha):
            price = weight * run.numbers[f"kl/{one}"] + (1 - weight) * run.numbers[f"kl/{two}"]
            found.append(price if number == "price" else run.numbers["reward"] - plane.beta * price)
        return found

    def measure(self, plane: Plane, rule: str, alpha: float, number: str, *, at: float | None = None) -> Measure:
        return Measure.of(self.values(plane, rule, alpha, number, at=at))

    def against_exact(self, plane: Plane, rule: str, alpha: float, number: str, *, at: float) -> Difference:
        """(rule at α) − (the exact rule at `at`), seed by seed, on the objective of weight `at`."""
        return paired(self.values(plane, rule, alpha, number, at=at), self.values(plane, "exact", at, number, at=at))

    # ---- computed, not trained; for the generated task ----

    def missed(self, plane: Plane, rule: str, alpha: float, *, at: float) -> list[float]:
        """By seed: the largest reward that any policy has at this one's Σ_k w_k KL (weight `at`), less its own. Empty where answers cannot be enumerated."""
        if self.exact_place(plane, at) is None:
            return []
        prices, rewards = (self.values(plane, rule, alpha, number, at=at) for number in ("price", "reward"))
        return [self._best_reward(plane, at, price) - reward for price, reward in zip(prices, rewards, strict=True)]

    def _best_reward(self, plane: Plane, alpha: float, price: float) -> float:
        """Reward of the exact optimum (over all β) whose price is this; linear between 80 values of β, so a little low (< 1e-3)."""
        found = [self.exact_place(plane, alpha, beta=plane.beta * 2 ** (step / 8)) for step in range(-48, 33)]
        places = [
            (alpha * place.kl[0] + (1 - alpha) * place.kl[1], place.reward) for place in reversed(found) if place is not None
        ]
        above = bisect.bisect_left([x for x, _ in places], price)
        if above == 0:
            return math.nan
        if above == len(places):
            return places[-1][1]
        (x0, y0), (x1, y1) = places[above - 1], places[above]
        return y0 + (y1 - y0) * (price - x0) / (x1 - x0)

    def exact_place(self, plane: Plane, alpha: float, *, beta: float | None = None) -> Place | None:
        """π*_α; None where answers cannot be enumerated."""
        return self.end(plane, "exact", alpha, beta=beta)

    def end(self, plane: Plane, rule: str, alpha: float, *, beta: float | None = None) -> Place | None:
        """Where `rule` at α comes to rest, measured by the objective of weight α."""
        if not isinstance(self.settings.tasks[plane.task], Generated):
            return None
        key = (plane.task, rule, alpha, plane.beta if beta is None else beta)
        if key not in self._ends:
            self._ends[key] = self._end(*key)
        return self._ends[key]

    @cached_property
    def _ends(self) -> dict[tuple[str, str, float, float], Place]:
        return {}

    def _end(self, task: str, rule: str, alpha: float, beta: float) -> Place:
        bench: GeneratedBench = self.bench(task)
        few = slice(0, FEW if rule == "multi-dpo" and alpha not in (0, 1) else None)
        reward, refs = bench.reward[few], bench.ref_logps[:, few]
        size = len(bench.world.vocabulary)
        training = self.settings.training
        log_policy = optimum(training, rule_at(rule, alpha), alpha, reward, refs, beta=beta, vocabulary=size)
        best = exact.solve(reward, refs, ReverseKL((alpha, 1 - alpha)), beta=beta)
        value = exact.value(log_policy, reward, refs, ReverseKL((alpha, 1 - alpha)), beta=beta)
        return Place(
            float(expectation(log_policy, reward).mean()),
            (float(kl(log_policy, refs[0]).mean()), float(kl(log_policy, refs[1]).mean())),
            float(value.mean()),
            float(kl(log_policy, best.log_policy).mean()),
        )

    def given(self, task: str) -> dict[str, dict[str, float]]:
        """Untouched models by the same measure (the first seed's prompts, where seeds have their own)."""
        bench = self.bench(task)
        if isinstance(bench, GeneratedBench):
            problems = bench.problems
            models = {"base": bench.world.base, **bench.world.references}
            return {f"{name}, untouched": bench.measure(bench.world.logps(model, problems)) for name, model in models.items()}
        models = {"policy": bench.policy, **bench.references}
        return {f"{name}, untouched": bench.measure(model.model, 0) for name, model in models.items()}

    def disagreement(self, task: str, alpha: float) -> float | None:
        """−log F, nats per completion: the least weighted KL that any policy has; None where answers cannot be enumerated."""
        bench = self.bench(task)
        return float(disagreement(bench.ref_logps, (alpha, 1 - alpha)).mean()) if isinstance(bench, GeneratedBench) else None

    def inspection(self, plane: Plane) -> Any:
        """What `multiref inspect` says of the first seed's pairs; None for online training, which has none."""
        if self.settings.training == "online":
            return None
        from multiref.evaluation.inspection import inspect

        bench = self.bench(plane.task)
        shared = bench.shared(plane.pairs, 0)
        pairs, scores = (shared.pairs, shared.scores) if isinstance(bench, GeneratedBench) else (shared[1].pairs, shared[0])
        return inspect(pairs, scores)
