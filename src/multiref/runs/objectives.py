"""What preference training minimises, and who chooses the weights: each kind with its own keys, its objective and its words."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal, NamedTuple

from pydantic import Field
from torch import Tensor

from multiref import losses, weighting
from multiref.errors import ConfigError
from multiref.regularizers import FDivergence, ReverseKL
from multiref.runs.base import PooledRun
from multiref.runs.sentences import nearest
from multiref.runs.strict import Arguments, ReadAs, arguments_of, one_of, union
from multiref.training import (
    AdaptiveWeights,
    LengthNormalised,
    MultiDPO,
    Objective,
    Preference,
    PreferenceData,
    SlidingWindow,
    ThompsonSampling,
    WeightStrategy,
    mrpo,
)
from multiref.training.objectives import Loss

__all__ = ["ObjectiveSetting", "WeightingSetting", "weigh"]

LOSSES: dict[str, tuple[Callable[..., Tensor], str]] = {
    "bradley_terry": (losses.bradley_terry, "−log σ(m)"),
    "robust": (losses.robust, "robust logistic(m)"),
    "ipo": (losses.ipo, "(m − ½)²"),
    "hinge": (losses.hinge, "max(0, 1 − m)"),
}


class Stated(NamedTuple):
    """An objective, what it is in words, and as a formula of the loss L(m)."""

    objective: Objective
    words: str
    formula: str


class PairObjective(Arguments[Stated]):
    """What is minimised. loss: of the margin. label_smoothing: share of labels taken to be wrong,
    under bradley_terry (conservative) and robust."""

    kind: str
    loss: Literal["bradley_terry", "robust", "ipo", "hinge"] = "bradley_terry"
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    length_normalised: bool = False

    def of(self, run: PooledRun) -> Stated:
        """The objective under the run's regularizer and weights."""
        if self.label_smoothing and self.loss not in ("bradley_terry", "robust"):
            raise ConfigError(f"objective: label_smoothing: {self.loss} has none; use bradley_terry (conservative) or robust.")
        loss, shown = LOSSES[self.loss]
        privacy = getattr(run, "privacy", None)
        if privacy is not None:
            if self.label_smoothing or self.loss != "bradley_terry":
                raise ConfigError(
                    f"privacy: private labels have a loss of their own; found objective: loss: {self.loss}, label_smoothing: "
                    f"{self.label_smoothing:g} beside it. Leave these out: label_smoothing does not correct flipped labels."
                )
            loss = partial(losses.randomised_response, epsilon=privacy.epsilon)
            shown = f"−log(α σ(m) + (1−α) σ(−m)), α = σ({privacy.epsilon:g})"
        made = self.make(run=run, loss=partial(loss, label_smoothing=self.label_smoothing) if self.label_smoothing else loss)
        made = made._replace(formula=made.formula.replace("L(m)", shown))
        if not self.length_normalised:
            return made
        return made._replace(
            objective=LengthNormalised(made.objective), words=f"{made.words}, length-normalised (a variant, exact for nothing)"
        )


def _preference(run: PooledRun, loss: Loss, reward_range: float | None = None) -> Stated:
    """The regularizer's implicit reward: DPO where that is the reverse KL to one reference."""
    pool = run.pool()
    if isinstance(pool, FDivergence):
        reward = f"r = β Σ_k w_k f'(π/π_k), f of {pool.name}"
    else:
        slope = "log t" if pool.alpha == 1 else f"(t^{pool.alpha - 1:g} − 1)/{pool.alpha - 1:g}"
        reward = f"r = β f'(π/P),  f'(t) = {slope},  P = pool of order {pool.order:g}"
    return Stated(
        Preference(pool, run.beta, loss, **({} if reward_range is None else {"reward_range": reward_range})),
        f"{pool.name} to several references: maximise E[r] − β {pool.formula}",
        f"L(m),  m = r(chosen) − r(rejected),  {reward}",
    )


def _multi_dpo(run: PooledRun, loss: Loss) -> Stated:
    """The weighted sum of single-reference losses."""
    words = "Multi-DPO: the weighted sum of single-reference losses"
    return Stated(MultiDPO(run.beta, run.weights, loss), words, "Σ_k w_k L(m),  m = β Δ(log π − log π_k)")


def _mrpo(
    run: PooledRun, loss: Loss, trust_region: float | None = None, anchor: str | None = None, adaptive: bool = False
) -> Stated:
    """Reverse KL to the harmonic pool. trust_region: of the log-ratio to the anchor, a reference (the first); adaptive:
    weights by confidence."""
    if anchor is not None and anchor not in run.names:
        raise ConfigError(f"objective: anchor: no reference is called {anchor!r}{nearest(anchor, run.names)}")
    place = run.names.index(anchor) if anchor else 0
    made = mrpo(run.beta, weights=run.weights, trust_region=trust_region, anchor=place, adaptive=adaptive, loss=loss)
    return Stated(made, "MRPO: reverse KL to the harmonic pool", "L(m),  m = β Δ(log π − log P),  P = (Σ_k w_k / π_k)^(−1)")


def _renormalised_tokens(run: PooledRun, loss: Loss) -> Stated:
    """DPO against the mixture renormalised at each token, which is another objective (docs/theory.md 5)."""
    made = Preference(ReverseKL(), run.beta, loss)
    return Stated(made, "The token-renormalised mixture", "L(m),  m = β Δ(log π − log π_tok)")


OBJECTIVES = {"preference": _preference, "multi_dpo": _multi_dpo, "mrpo": _mrpo, "renormalised_tokens": _renormalised_tokens}


class Weighting(Arguments[WeightStrategy]):
    """Who chooses the weights: uniform; vdw, vaw or convex_fit, once, from held-out pairs; arwc, for each pair from its own
    references; or a strategy that changes them while training."""

    kind: str


class Rule(Weighting):
    kind: Literal["uniform", "vdw", "vaw", "arwc", "convex_fit"]


SLIDING_WINDOW = arguments_of(SlidingWindow, base=Weighting, tag=("kind", "sliding_window"))
THOMPSON = arguments_of(ThompsonSampling, base=Weighting, tag=("kind", "thompson"), without={"validation"})
_OBJECTIVE = one_of("kind", OBJECTIVES, base=PairObjective, without={"run", "loss"}, check=False)
ObjectiveSetting = Annotated[PairObjective, ReadAs(_OBJECTIVE)]
WeightingSetting = Annotated[Weighting, ReadAs(union("kind", [Rule, SLIDING_WINDOW, THOMPSON]))]


def weigh(
    setting: Weighting | None, objective: Objective, held_out: PreferenceData | None
) -> tuple[Objective, WeightStrategy | None]:
    """(the objective at the weights that were chosen; a strategy that changes them while training, or None)."""
    kind = "uniform" if setting is None else setting.kind
    if setting is None or kind == "uniform":
        return objective, None
    if kind == "sliding_window":
        return objective, setting.make()
    if kind == "arwc":
        return AdaptiveWeights(objective), None
    if held_out is None:
        raise ConfigError(f"weighting: {kind} looks at held-out pairs, and `evaluation` has none.")
    if kind == "thompson":
        return objective, setting.make(validation=held_out)
    logps = held_out.scores.at("logps", held_out.columns)
    each = logps if kind == "convex_fit" else logps / held_out.scores.at("lengths", held_out.columns)
    margins = each[..., 0] - each[..., 1]
    if kind == "convex_fit":
        return objective.reweighted(weighting.fit_preferences(margins).weights), None
    return objective.reweighted((weighting.vdw if kind == "vdw" else weighting.vaw)(margins)), None
