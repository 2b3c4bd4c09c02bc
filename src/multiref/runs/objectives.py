"""What preference training minimises, and who chooses the weights: each kind with its own keys, its objective and its words."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator
from torch import Tensor

from multiref import losses, weighting
from multiref.errors import ConfigError
from multiref.regularizers import ReverseKL
from multiref.runs.base import PooledRun
from multiref.runs.strict import Arguments, Strict, arguments_of, one_of
from multiref.training.dataset import PreferenceData
from multiref.training.objectives import MultiDPO, Objective, Preference
from multiref.training.rivals import AdaptiveWeights, LengthNormalised, mrpo
from multiref.training.strategies import SlidingWindow, ThompsonSampling, WeightStrategy

__all__ = ["ImplicitReward", "ObjectiveSetting", "PairObjective", "RenormalisedTokens", "WeightingSetting", "weigh"]

LOSSES: dict[str, tuple[Callable[..., Tensor], str]] = {
    "bradley_terry": (losses.bradley_terry, "−log σ(m)"),
    "robust": (losses.robust, "robust logistic(m)"),
    "ipo": (losses.ipo, "(m − ½)²"),
    "hinge": (losses.hinge, "max(0, 1 − m)"),
}


class PairObjective(Strict):
    """What is minimised. loss: of the margin. label_smoothing: share of labels taken to be wrong, under bradley_terry (conservative) and robust."""

    kind: str
    loss: Literal["bradley_terry", "robust", "ipo", "hinge"] = "bradley_terry"
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    length_normalised: bool = False

    @model_validator(mode="after")
    def _smooth(self) -> PairObjective:
        if self.label_smoothing and self.loss not in ("bradley_terry", "robust"):
            raise ValueError(f"label_smoothing: {self.loss} has none; use bradley_terry (conservative) or robust.")
        return self

    def objective(self, run: PooledRun) -> Objective:
        """The objective, with the references' weights."""
        loss = LOSSES[self.loss][0]
        made = self.of(run, partial(loss, label_smoothing=self.label_smoothing) if self.label_smoothing else loss)
        return LengthNormalised(made) if self.length_normalised else made

    def of(self, run: PooledRun, loss: Any) -> Objective:
        raise NotImplementedError

    def words(self, run: PooledRun) -> tuple[str, str]:
        """In words, and as a formula."""
        words, formula = self.of_margin(run)
        said = f"{words}, length-normalised (a variant, exact for nothing)" if self.length_normalised else words
        return said, formula.replace("L(m)", LOSSES[self.loss][1])

    def of_margin(self, run: PooledRun) -> tuple[str, str]:
        """In words, and as a formula of the loss L(m)."""
        raise NotImplementedError


class ImplicitReward(PairObjective):
    """The regularizer's implicit reward: DPO where that is the reverse KL to one reference."""

    kind: Literal["preference"] = "preference"
    reward_range: float | None = None

    def of(self, run: PooledRun, loss: Any) -> Objective:
        return Preference(
            run.pool(), run.beta, loss, **({} if self.reward_range is None else {"reward_range": self.reward_range})
        )

    def of_margin(self, run: PooledRun) -> tuple[str, str]:
        pool = run.pool()
        slope = "log t" if pool.alpha == 1 else f"(t^{pool.alpha - 1:g} − 1)/{pool.alpha - 1:g}"
        return (
            f"{pool.name} to several references: maximise E[r] − β {pool.formula}",
            f"L(m),  m = r(chosen) − r(rejected),  r = β f'(π/P),  f'(t) = {slope},  P = pool of order {pool.order:g}",
        )


class MultiDPOObjective(PairObjective):
    """The weighted sum of single-reference losses."""

    kind: Literal["multi_dpo"] = "multi_dpo"

    def of(self, run: PooledRun, loss: Any) -> Objective:
        return MultiDPO(run.beta, run.weights, loss)

    def of_margin(self, run: PooledRun) -> tuple[str, str]:
        return "Multi-DPO: the weighted sum of single-reference losses", "Σ_k w_k L(m),  m = β Δ(log π − log π_k)"


class MRPOObjective(PairObjective):
    """Reverse KL to the harmonic pool. trust_region: of the log-ratio to the anchor, a reference (the first); adaptive: weights by confidence."""

    kind: Literal["mrpo"] = "mrpo"
    trust_region: float | None = None
    anchor: str | None = None
    adaptive: bool = False

    def of(self, run: PooledRun, loss: Any) -> Objective:
        anchor = run.names.index(self.anchor) if self.anchor else 0
        return mrpo(
            run.beta, weights=run.weights, trust_region=self.trust_region, anchor=anchor, adaptive=self.adaptive, loss=loss
        )

    def of_margin(self, run: PooledRun) -> tuple[str, str]:
        return "MRPO: reverse KL to the harmonic pool", "L(m),  m = β Δ(log π − log P),  P = (Σ_k w_k / π_k)^(−1)"


class RenormalisedTokens(PairObjective):
    """DPO against the mixture renormalised at each token, which is another objective (docs/theory.md 5)."""

    kind: Literal["renormalised_tokens"] = "renormalised_tokens"

    def of(self, run: PooledRun, loss: Any) -> Objective:
        return Preference(ReverseKL(), run.beta, loss)

    def of_margin(self, run: PooledRun) -> tuple[str, str]:
        return "The token-renormalised mixture", "L(m),  m = β Δ(log π − log π_tok)"


class Rule(Strict):
    """Weights from a rule: uniform; vdw, vaw or convex_fit, once, from held-out pairs; arwc, for each pair from its own references."""

    kind: Literal["uniform", "vdw", "vaw", "arwc", "convex_fit"]


SLIDING_WINDOW = arguments_of(SlidingWindow, tag=("kind", "sliding_window"))
THOMPSON = arguments_of(ThompsonSampling, tag=("kind", "thompson"), without={"validation"}, check=False)
if TYPE_CHECKING:
    ObjectiveSetting = PairObjective
    WeightingSetting = Rule | Arguments[WeightStrategy]
else:
    ObjectiveSetting = one_of("kind", [ImplicitReward, MultiDPOObjective, MRPOObjective, RenormalisedTokens])
    WeightingSetting = one_of("kind", [Rule, SLIDING_WINDOW, THOMPSON])


def weigh(
    setting: WeightingSetting | None, objective: Objective, held_out: PreferenceData | None
) -> tuple[Objective, WeightStrategy | None]:
    """(the objective at the weights that were chosen; a strategy that changes them while training, or None)."""
    if isinstance(setting, SLIDING_WINDOW):
        return objective, setting.make()
    kind = "uniform" if setting is None else setting.kind
    if kind == "uniform":
        return objective, None
    if kind == "arwc":
        return AdaptiveWeights(objective), None
    if held_out is None:
        raise ConfigError(f"weighting: {kind} looks at held-out pairs; set `evaluation`.")
    if isinstance(setting, THOMPSON):
        return objective, setting.make(validation=held_out)
    if kind == "convex_fit":
        return objective.reweighted(weighting.fit_preferences(_margins(held_out.references)).weights), None
    rule = weighting.vdw if kind == "vdw" else weighting.vaw
    return objective.reweighted(rule(_margins(held_out.references / held_out.ref_lengths))), None


def _margins(logps: Tensor) -> Tensor:
    return logps[..., 0] - logps[..., 1]
