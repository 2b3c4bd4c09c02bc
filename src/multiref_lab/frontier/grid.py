"""The cells of a sweep: one training run each, none trained twice."""

from dataclasses import dataclass

from multiref_lab.frontier.settings import FrontierSettings

SINGLE = "single"
OWN_ENDS = ("authors",)  # with one reference this rule is still not the objective as stated: it is trained at its ends too


@dataclass(frozen=True)
class Cell:
    """One run: a rule at a weight of the first reference, strength β, on so many pairs (0: trained online), under a seed."""

    task: str
    training: str
    rule: str
    weight: float
    beta: float
    pairs: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.task}-{self.training}-{self.rule}-{self.weight:g}-seed{self.seed}"

    @property
    def weights(self) -> tuple[float, float]:
        """Of both references."""
        return self.weight, 1 - self.weight


def rule_at(rule: str, weight: float) -> str:
    """The rule of the run that a curve passes at a weight: at both ends the single reference's own,
    which every rule is there but those of `OWN_ENDS`."""
    return SINGLE if weight in (0, 1) and rule not in OWN_ENDS else rule


def cell_at(task: str, training: str, rule: str, weight: float, beta: float, pairs: int, seed: int) -> Cell:
    """The cell that a rule's curve passes at a weight."""
    return Cell(task, training, rule_at(rule, weight), float(weight), float(beta), pairs, seed)


def cells(settings: FrontierSettings) -> list[Cell]:
    """All cells, each once; both single references always (they are a line across every weight).
    Seeds outermost, so that a cut run has whole seeds."""
    every = (
        cell_at(name, settings.training, rule, weight, beta, pairs, seed)
        for name, task in settings.tasks.items()
        for seed in range(settings.seeds)
        for pairs in settings.sizes(task)
        for beta in task.betas
        for weight in (1.0, 0.0, *settings.weights)
        for rule in settings.chosen  # exact among them, whose ends are the single references
    )
    return list(dict.fromkeys(every))
