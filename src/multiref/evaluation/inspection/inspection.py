"""`inspect`: everything that stored scores say about K references on a set of preference pairs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import torch

from multiref._progress import each_told
from multiref.data import Pair
from multiref.errors import ArgumentError
from multiref.evaluation.inspection.evidence import gather
from multiref.evaluation.inspection.faults import doubts, find_faults
from multiref.evaluation.inspection.mixture import (
    MIN_GAIN,
    SIGNIFICANCE,
    Contender,
    Step,
    Weighting,
    contenders,
    fewest,
    folds_of,
    select,
    weigh,
)
from multiref.evaluation.inspection.quality import Quality, quality
from multiref.evaluation.inspection.score_test import SampleSize, ScoreTest, plan_pairs, try_additions
from multiref.evaluation.inspection.verdict import Verdict, judge
from multiref.references.scores import SequenceScores

if TYPE_CHECKING:
    from multiref.evaluation.inspection.escort import Escort
    from multiref.references.token_level import TokenLevel


MANY = 20_000  # pairs from which on the intervals are resampled less often


@dataclass(frozen=True)
class Inspection:
    """The whole finding; `verdict` is its summary in words. `additions`: each sound reference tested for what it adds to the
    chosen ones (an already chosen one: to the others). `length`: mean tokens of a completion.
    `token_level` and `escort` are None where they were not measured, and `not_measured` says why."""

    pairs: int
    prompts: int
    left_out: int
    references: tuple[Quality, ...]
    correlations: tuple[tuple[float, ...], ...]
    steps: tuple[Step, ...]
    additions: tuple[ScoreTest, ...]
    contenders: tuple[Contender, ...]
    weighting: Weighting | None
    length: float
    verdict: Verdict
    token_level: "TokenLevel | None" = None
    escort: "Escort | None" = None
    not_measured: str = ""

    @property
    def sound(self) -> tuple[str, ...]:
        """The names of the references that do not look broken."""
        return tuple(quality.name for quality in self.references if not quality.faults)

    def with_escort(self, measured: "Escort") -> "Inspection":
        """The same, its verdict saying where the optimum under these references would go."""
        verdict = replace(self.verdict, sentences=(*self.verdict.sentences, *measured.sentences))
        return replace(self, escort=measured, verdict=verdict)

    def plan(self, gain: float | None = None) -> list[SampleSize]:
        """How many pairs would show what each sound reference adds, at the size found or at `gain` nats a pair."""
        level = SIGNIFICANCE / max(len(self.additions), 1)
        return plan_pairs(self.additions, pairs=self.pairs, significance=level, gain=gain)

    def as_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return asdict(self)


def inspect(
    pairs: Sequence[Pair],
    scores: SequenceScores,
    *,
    folds: int = 5,
    min_gain: float = MIN_GAIN,
    resamples: int = 200,
    seed: int = 0,
) -> Inspection:
    """Does a second reference help? Evidence in scores → qualities, mixture, coverage, verdict.

    Args:
        pairs: preference pairs, all of which have scores.
        scores: their `SequenceScores`, K ≥ 1.
        folds: prompts are split in so many parts, each predicted from the others; at most half as many as there are prompts.
        min_gain: nats a pair; a reference whose gain is surely smaller does not join, however sure it is.
        resamples: bootstrap resamples of prompts for the intervals of weights.
        seed: of the split and the resampling; the verdict should not depend on it.

    Raises: StoreError for a pair without scores; DataError where none has finite ones everywhere; ArgumentError for one fold.
    """
    if folds < 2 or resamples < 1:
        raise ArgumentError(f"folds, resamples: found {folds} and {resamples}; expected at least 2 and 1.")
    stages = iter(each_told(range(5), "inspecting", 5))
    next(stages)
    evidence = gather(pairs, scores)
    prompts = int(evidence.groups.max()) + 1
    faults = find_faults(evidence)
    qualities = [quality(evidence, k, faults=faults[k]) for k in range(len(evidence.names))]
    next(stages)
    sound = [k for k, signs in enumerate(faults) if not signs]
    enough = prompts >= fewest(len(sound)) and bool(sound)
    split = folds_of(evidence.groups, min(folds, prompts // 2), seed) if enough else evidence.groups
    chosen, steps = select(evidence, sound, split, min_gain=min_gain) if enough else ([], [])
    next(stages)
    table = contenders(evidence, sound, split) if enough else []
    next(stages)
    additions = try_additions(evidence, sound, chosen) if enough else []
    next(stages)
    times = resamples if evidence.pairs <= MANY else min(resamples, 50)
    weighting = weigh(evidence, chosen, resamples=times, seed=seed) if chosen else None
    next(stages, None)
    correlations = torch.corrcoef(evidence.margins).reshape(len(evidence.names), -1).nan_to_num(0.0)
    return Inspection(
        pairs=evidence.pairs,
        prompts=prompts,
        left_out=evidence.left_out,
        references=tuple(qualities),
        correlations=tuple(tuple(row) for row in correlations.tolist()),
        steps=tuple(steps),
        additions=tuple(additions),
        contenders=tuple(table),
        weighting=weighting,
        length=float(evidence.lengths.double().mean()),
        verdict=judge(qualities, steps, additions, weighting, table, doubts(evidence, faults), prompts=prompts),
    )
