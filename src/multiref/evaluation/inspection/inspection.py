"""`inspect`: everything that stored scores say about K references on a set of preference pairs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import torch

from multiref.data import Pair
from multiref.errors import ArgumentError
from multiref.evaluation.inspection.coverage import Coverage, coverage
from multiref.evaluation.inspection.evidence import gather
from multiref.evaluation.inspection.faults import doubts, find_faults
from multiref.evaluation.inspection.mixture import Contender, Step, Weighting, contenders, folds_of, select, weigh
from multiref.evaluation.inspection.quality import Quality, quality
from multiref.evaluation.inspection.verdict import Verdict, judge
from multiref.references.scores import SequenceScores

if TYPE_CHECKING:
    from multiref.references.token_level import TokenLevel


MANY = 20_000  # pairs from which on the intervals are resampled less often


@dataclass(frozen=True)
class Inspection:
    """The whole finding; `verdict` is its summary in words. `length`: mean tokens of a completion.
    `token_level` and `coverage` are None where they were not measured, and `not_measured` says why."""

    pairs: int
    prompts: int
    left_out: int
    references: tuple[Quality, ...]
    correlations: tuple[tuple[float, ...], ...]
    steps: tuple[Step, ...]
    contenders: tuple[Contender, ...]
    weighting: Weighting | None
    length: float
    verdict: Verdict
    token_level: "TokenLevel | None" = None
    coverage: Coverage | None = None
    not_measured: str = ""

    @property
    def sound(self) -> tuple[str, ...]:
        """The names of the references that do not look broken."""
        return tuple(quality.name for quality in self.references if not quality.faults)

    def with_token_level(self, measured: "TokenLevel") -> "Inspection":
        """The same, with what was measured per token and what it means for coverage."""
        return replace(
            self,
            token_level=measured,
            coverage=coverage(measured.disagreement, measured.disagreement_error, length=self.length),
        )

    def without_token_level(self, reason: str) -> "Inspection":
        """The same, saying why nothing was measured per token."""
        return replace(self, not_measured=reason)

    def as_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return asdict(self)


def inspect(
    pairs: Sequence[Pair],
    scores: SequenceScores,
    *,
    folds: int = 5,
    resamples: int = 200,
    seed: int = 0,
) -> Inspection:
    """Does a second reference help? Evidence in scores → qualities, mixture, coverage, verdict.

    Args:
        pairs: preference pairs, all of which have scores.
        scores: their `SequenceScores`, K ≥ 1.
        folds: prompts are split in so many parts, each predicted from the others.
        resamples: bootstrap resamples of prompts for the intervals of weights.
        seed: of the split and the resampling; the verdict should not depend on it.
    """
    evidence = gather(pairs, scores)
    prompts = int(evidence.groups.max()) + 1
    if prompts < 2 * folds:
        expected = f"expected at least {2 * folds} for {folds} folds"
        raise ArgumentError(f"There are {prompts} different prompts; {expected}. Bring more pairs, or fewer folds.")
    faults = find_faults(evidence)
    qualities = [quality(evidence, k, faults=faults[k]) for k in range(len(evidence.names))]
    sound = [k for k, signs in enumerate(faults) if not signs]
    split = folds_of(evidence.groups, folds, seed)
    chosen, steps = select(evidence, sound, split) if sound else ([], [])
    table = contenders(evidence, sound, split) if sound else []
    times = resamples if evidence.pairs <= MANY else min(resamples, 50)
    weighting = weigh(evidence, chosen, resamples=times, seed=seed) if chosen else None
    correlations = torch.corrcoef(evidence.margins).reshape(len(evidence.names), -1).nan_to_num(0.0)
    return Inspection(
        pairs=evidence.pairs,
        prompts=prompts,
        left_out=evidence.left_out,
        references=tuple(qualities),
        correlations=tuple(tuple(row) for row in correlations.tolist()),
        steps=tuple(steps),
        contenders=tuple(table),
        weighting=weighting,
        length=float(evidence.lengths.double().mean()),
        verdict=judge(qualities, steps, weighting, table, doubts(evidence, faults)),
    )
