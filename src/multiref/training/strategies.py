"""Weights that change while training, as callbacks whose state is saved in every checkpoint.
They change between steps only, alike on every rank.

They are the online strategies of arXiv 2512.10040 with the defects of the released code (docs/theory.md 8) repaired;
each says which.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from multiref.errors import ArgumentError
from multiref.models.architecture import evaluating
from multiref.training.checks import check_choice, check_whole
from multiref.training.dataset import PreferenceData
from multiref.training.metrics import counted
from multiref.training.objectives import Objective, PairLogps


def over_ranks(values: Sequence[float], how: str) -> list[float]:
    """The sum or mean of each number over the processes of the run, the same on all of them; without others, the numbers."""
    state = PartialState()
    if state.num_processes == 1:
        return list(values)
    wide = torch.float32 if state.device.type == "mps" else torch.float64
    reduced: Tensor = reduce(torch.tensor(values, dtype=wide, device=state.device), reduction=how)
    return [float(value) for value in reduced]


class WeightStrategy(TrainerCallback, ExportableState):
    """Where a step's weights come from. A `TrainerCallback` with state: a resumed run goes on with the same weights.

    The trainer calls `start(names)` once, `weights(pairs)` before each loss and `observe(pairs, objective, shares)` after it;
    what is observed takes effect at the next step, so that micro-batches of one step share their weights.
    Each rank observes its own pairs: what decides the next weights goes through `over_ranks`.
    """

    names: tuple[str, ...] = ()
    made_of: ClassVar[tuple[str, ...]] = ()  # the arguments, and what else a checkpoint keeps
    kept: ClassVar[tuple[str, ...]] = ()

    def start(self, names: Sequence[str]) -> None:
        """The names of the K references, in order."""
        self.names = tuple(names)

    def weights(self, pairs: PairLogps) -> Tensor:
        """[K], or [K, B] for each pair its own."""
        raise NotImplementedError

    def observe(self, pairs: PairLogps, objective: Objective, shares: Tensor) -> None:
        """See the pairs of a training pass and how much each counts, [B] (0: it only fills a rank's batch);
        by default, nothing."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: `made_of`, and `kept` with the names."""
        made, kept = ({name: getattr(self, name) for name in names} for names in (self.made_of, self.kept))
        return {"args": made, "attributes": {"names": list(self.names), **kept}}

    def succeed(self, predecessor: "WeightStrategy") -> None:
        """Take over, after a restart, what no checkpoint holds (data, for instance) from the strategy given to the trainer."""


class SlidingWindow(WeightStrategy):
    r"""w_k ∝ the average over the pairs of the last `window` steps of how reference k judged them. Uniform at first.

        statistic "discrimination": |Δ_k|,   Δ_k = log π_k(y_w)/T_w − log π_k(y_l)/T_l  (per token, each in its own tokenizer)
        statistic "accuracy":       1[Δ_k > 0],  ½ at a tie

    Repaired against the released SWCW: it averages over a window of whole steps instead of giving row j of this batch the
    weights of row j of the last one; weights are one vector; the same pairs in other micro-batches give the same weights;
    the state survives a restart. Not repaired, because it is what "discrimination" means: the sign of Δ_k is ignored there.
    "accuracy" minds it.
    """

    made_of, kept = ("window", "statistic"), ("steps",)
    steps: Sequence[list[float]] = ()  # per step: Σ over pairs of each reference's statistic, then the number of pairs
    _open: Sequence[float] = ()

    def __init__(self, window: int = 16, statistic: str = "discrimination") -> None:
        self.window, self.statistic = window, statistic
        check_whole(self, 1, "window")
        check_choice("statistic", statistic, ("discrimination", "accuracy"))

    def start(self, names: Sequence[str]) -> None:
        super().start(names)
        self.steps, self._open = [], []

    def weights(self, pairs: PairLogps) -> Tensor:
        like = pairs.policy.detach()
        total = like.new_tensor(self.steps).sum(0)[:-1] if self.steps else like.new_zeros(len(self.names))
        return total / total.sum() if float(total.sum()) > 0 else like.new_full((len(self.names),), 1 / len(self.names))

    @torch.no_grad()
    def observe(self, pairs: PairLogps, objective: Objective, shares: Tensor) -> None:
        per_token = pairs.references / pairs.ref_lengths
        delta = per_token[..., 0] - per_token[..., 1]
        judged = delta.abs() if self.statistic == "discrimination" else (torch.sign(delta) + 1) / 2
        seen = [*counted(judged, shares).tolist(), float(shares.sum())]
        self._open = [a + b for a, b in zip(self._open, seen)] if self._open else seen

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        seen = over_ranks(self._open or [0.0] * (len(self.names) + 1), "sum")
        self._open = []
        if seen[-1]:
            self.steps = [*self.steps, seen][-self.window :]


class ThompsonSampling(WeightStrategy):
    r"""One reference at a time, chosen by a bandit: θ_k ~ Beta(a_k, b_k), the largest is used alone for `hold` steps.

    After them the arm is credited (a += 1) if the loss on `validation` fell, and b += 1 if it rose; a tie counts for neither.
    The loss is the objective's at uniform weights, the same yardstick for every arm, on the same pairs before and after.

    Repaired against the released TSW: it judges `hold` steps rather than one, by a loss rather than by a strict gain in
    accuracy on a random subset (there "no change" counts as failure, and posterior means stay under ½ whatever the arm does).
    It is still not a mixture: each step follows one reference.

    Args:
        validation: `PreferenceData` with the same references, not trained on.
        hold: steps before an arm is judged.
        prior: a and b of every arm at the start.
        seed: of the draws; they do not depend on torch's global generator.
    """

    made_of, kept = ("hold", "prior", "seed", "pairs"), ("counts", "arm", "draws", "held", "before")
    counts: Sequence[list[float]] = ()  # per arm [a, b]
    arm = draws = held = 0
    before: float | None = None
    _objective: Objective | None = None

    def __init__(
        self, validation: PreferenceData | None = None, hold: int = 8, prior: float = 1.0, seed: int = 0, pairs: int = 64
    ) -> None:
        if hold < 1 or not prior > 0 or pairs < 1:
            raise ArgumentError(f"ThompsonSampling: expected hold, pairs ≥ 1 and prior > 0, found {hold}, {pairs}, {prior}.")
        self.hold, self.prior, self.seed, self.pairs = hold, prior, seed, pairs
        self._validation = validation

    def start(self, names: Sequence[str]) -> None:
        super().start(names)
        self.draws, self.held, self.before, self._objective = 0, 0, None, None
        if self._validation is None:
            raise ArgumentError("ThompsonSampling: expected `validation`, pairs to judge an arm by, found None.")
        if self._validation.names != tuple(names):
            raise ArgumentError(
                f"ThompsonSampling: validation has references {self._validation.names}, training has {tuple(names)}."
            )
        self.counts = [[self.prior, self.prior] for _ in names]
        self._choose()

    def weights(self, pairs: PairLogps) -> Tensor:
        vertex = pairs.policy.new_zeros(len(self.names)).detach()
        vertex[self.arm] = 1
        return vertex

    def observe(self, pairs: PairLogps, objective: Objective, shares: Tensor) -> None:
        self._objective = objective.reweighted(None)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.held += 1
        if self.held < self.hold or self._objective is None:
            return
        now = over_ranks([self._loss(model)], "mean")[0]  # the same pairs on every rank: the mean only settles the rounding
        if self.before is not None and now != self.before:
            self.counts[self.arm][0 if now < self.before else 1] += 1
        self.before, self.held = now, 0
        self._choose()

    def _choose(self) -> None:
        a, b = torch.tensor(self.counts, dtype=torch.float64).T
        generator = torch.Generator().manual_seed(self.seed + 7_919 * self.draws)
        gamma = [torch._standard_gamma(shape, generator=generator) for shape in (a, b)]
        self.arm, self.draws = int((gamma[0] / (gamma[0] + gamma[1])).argmax()), self.draws + 1

    @torch.no_grad()
    def _loss(self, model: Any) -> float:
        if self._validation is None or self._objective is None:
            raise ArgumentError("ThompsonSampling: an arm is judged after `start` and a first `observe`; found neither.")
        batch = self._validation.batch(range(min(self.pairs, len(self._validation))))
        with evaluating(model):
            logps = batch.logps(model)
        return float(counted(self._objective.losses(logps), batch.shares.to(logps.policy)) / batch.shares.sum())

    def succeed(self, predecessor: WeightStrategy) -> None:
        if isinstance(predecessor, ThompsonSampling):
            self._validation, self._objective = predecessor._validation, predecessor._objective
