"""The cells of a sweep: one training run each, none trained twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from multiref_lab.frontier.settings import FrontierSettings

__all__ = ["SINGLE", "Cell", "cell_at", "cells", "rule_at"]

SINGLE = "single"
OWN_ENDS = ("authors",)  # with one reference this rule is still not the objective as stated: it is trained at its ends too


@dataclass(frozen=True)
class Cell:
    """One run: a rule at weight α of the first reference, strength β, on so many pairs (0: trained online), under a seed."""

    task: str
    training: str
    rule: str
    alpha: float
    beta: float
    pairs: int
    seed: int

    @property
    def weights(self) -> tuple[float, float]:
        """(α, 1 − α)."""
        return self.alpha, 1 - self.alpha


def rule_at(rule: str, alpha: float) -> str:
    """The rule of the run that a curve passes at α: at both ends the single reference's own, which every rule is there but those of `OWN_ENDS`."""
    return SINGLE if alpha in (0, 1) and rule not in OWN_ENDS else rule


def cell_at(task: str, training: str, rule: str, alpha: float, beta: float, pairs: int, seed: int) -> Cell:
    """The cell that a rule's curve passes at α."""
    return Cell(task, training, rule_at(rule, alpha), alpha, beta, pairs, seed)


def cells(settings: FrontierSettings) -> list[Cell]:
    """All cells, each once; both single references always (they are a line across every α). Seeds outermost, so that a cut run has whole seeds."""
    return list(dict.fromkeys(_all(settings)))


def _all(settings: FrontierSettings) -> Iterator[Cell]:
    for name, task in settings.tasks.items():
        sizes = task.pairs if settings.training == "offline" else [0]
        for seed in range(settings.seeds):
            for pairs in sizes:
                for beta in task.betas:
                    for alpha in (1.0, 0.0, *settings.weights):
                        for rule in settings.chosen:  # exact among them, whose ends are the single references
                            yield cell_at(name, settings.training, rule, float(alpha), float(beta), pairs, seed)
