"""From the words of a configuration to an objective and to weights."""

from __future__ import annotations

from functools import partial
from typing import Any

from multiref import losses
from multiref.runs.config import nearest
from multiref.runs.settings import Run, tokenisation_of
from multiref.errors import ConfigError, WeightsError
from multiref.regularizers import AlphaDivergence, ForwardKL, PooledKL, ReverseKL

__all__ = ["objective_of", "regularizer_of", "renormalised", "weighting_of"]

REGULARIZERS = {"ReverseKL": ReverseKL, "ForwardKL": ForwardKL, "AlphaDivergence": AlphaDivergence, "PooledKL": PooledKL}
LOSSES: dict[str, Any] = {
    "bradley_terry": losses.bradley_terry,
    "robust": losses.robust,
    "ipo": losses.ipo,
    "hinge": losses.hinge,
}
STRATEGIES = ("uniform", "vdw", "vaw", "arwc", "convex_fit", "sliding_window", "thompson")


def checked(run: Run) -> None:
    """What can be refused before anything is read: at the start, not at step 1."""
    objective_of(run)
    for reference in run.references:
        reference.options()
    if run.weighting is not None:
        _kind(run)


def weights_of(run: Run) -> tuple[float, ...] | None:
    """The references' weights, checked; None where none is given."""
    given = [reference.weight for reference in run.references]
    if all(weight is None for weight in given):
        return None
    if any(weight is None for weight in given):
        missing = next(reference.name for reference in run.references if reference.weight is None)
        raise ConfigError(
            f"references: {missing!r} has no weight while others have; give all of them a weight, or none (uniform)."
        )
    try:
        checked = ReverseKL([float(weight) for weight in given if weight is not None]).weights
    except WeightsError as error:
        raise ConfigError(f"references: {error}") from None
    return checked  # type: ignore[return-value]


def regularizer_of(run: Run, weights: Any) -> Any:
    """The regularizer that is named, with these weights."""
    spec = dict(run.regularizer) if isinstance(run.regularizer, dict) else {"kind": run.regularizer}
    kind = spec.pop("kind", None)
    if kind not in REGULARIZERS:
        raise ConfigError(f"regularizer: unknown kind {kind!r}{nearest(str(kind), REGULARIZERS)}.")
    try:
        return REGULARIZERS[kind](weights, **spec)
    except TypeError as error:
        raise ConfigError(f"regularizer: {error}") from None


def objective_of(run: Run) -> Any:
    """The objective, with the references' weights."""
    from multiref.training import LengthNormalised, MultiDPO, Preference, mrpo

    spec: Any = run.objective
    weights = weights_of(run)
    loss = _loss(spec)
    if spec.kind == "preference":
        options = {} if spec.reward_range is None else {"reward_range": spec.reward_range}
        made: Any = Preference(regularizer_of(run, weights), run.beta, loss, **options)
    elif spec.kind == "multi_dpo":
        made = MultiDPO(run.beta, weights, loss)
    elif spec.kind == "mrpo":
        names = [reference.name for reference in run.references]
        if spec.anchor is not None and spec.anchor not in names:
            raise ConfigError(f"objective.anchor: no reference is called {spec.anchor!r}{nearest(spec.anchor, names)}.")
        anchor = names.index(spec.anchor) if spec.anchor else 0
        made = mrpo(run.beta, weights=weights, trust_region=spec.trust_region, anchor=anchor, adaptive=spec.adaptive, loss=loss)
    elif spec.kind == "renormalised_tokens":
        made = Preference(ReverseKL(), run.beta, loss)
    else:
        kinds = ("preference", "multi_dpo", "mrpo", "renormalised_tokens")
        raise ConfigError(f"objective.kind: unknown {spec.kind!r}{nearest(spec.kind, kinds)}.")
    return LengthNormalised(made) if spec.length_normalised else made


def renormalised(run: Run, pairs: list[Any], max_length: int | None) -> tuple[Any, Any]:
    """The token-level mixture as one reference, and DPO against it."""
    from multiref.models import ModelSpec, load
    from multiref.training.renormalised import renormalised_scores

    models = []
    for reference in run.references:
        if reference.model is None:
            raise ConfigError(f"objective.kind: renormalised_tokens needs models here; {reference.name!r} is an endpoint.")
        models.append(load(ModelSpec(reference.model, revision=reference.revision, adapter=reference.adapter)))
    scores = renormalised_scores(models, weights_of(run), pairs, tokenisation=tokenisation_of(run, max_length))
    return objective_of(run), scores


def weighting_of(run: Run, objective: Any, data: Any, evaluation: Any) -> tuple[Any, Any]:
    """(the objective at the weights that were chosen; a strategy that changes them while training, or None)."""
    if run.weighting is None:
        return objective, None
    kind, spec = _kind(run)
    try:
        return _weighted(kind, spec, objective, evaluation)
    except TypeError as error:
        raise ConfigError(f"weighting: {error}") from None


def _kind(run: Run) -> tuple[str, dict[str, Any]]:
    """The strategy that `weighting` names, and its options."""
    spec = dict(run.weighting) if isinstance(run.weighting, dict) else {"kind": run.weighting}
    kind = str(spec.pop("kind", None))
    if kind not in STRATEGIES:
        raise ConfigError(f"weighting: unknown kind {kind!r}{nearest(kind, STRATEGIES)}.")
    if any(reference.weight is not None for reference in run.references):
        raise ConfigError(
            f"weighting: {kind} chooses the weights, and references have weights of their own; remove one or the other."
        )
    return kind, spec


def _weighted(kind: str, spec: dict[str, Any], objective: Any, evaluation: Any) -> tuple[Any, Any]:
    from multiref import weighting
    from multiref.training.rivals import AdaptiveWeights
    from multiref.training.strategies import SlidingWindow, ThompsonSampling

    if kind == "sliding_window":
        return objective, SlidingWindow(**spec)
    if kind == "thompson":
        return objective, ThompsonSampling(_needed(kind, evaluation), **spec)
    if spec:
        raise ConfigError(f"weighting: {kind} has no option {next(iter(spec))!r}.")
    if kind == "arwc":
        return AdaptiveWeights(objective), None
    if kind == "uniform":
        return objective, None
    held_out = _needed(kind, evaluation)
    if kind == "convex_fit":
        return objective.reweighted(weighting.fit_preferences(_margins(held_out.references)).weights), None
    per_token = _margins(held_out.references / held_out.ref_lengths)
    return objective.reweighted((weighting.vdw if kind == "vdw" else weighting.vaw)(per_token)), None


def _needed(kind: str, evaluation: Any) -> Any:
    if evaluation is None:
        raise ConfigError(f"weighting: {kind} looks at held-out pairs; set `evaluation`.")
    return evaluation


def _margins(logps: Any) -> Any:
    return logps[..., 0] - logps[..., 1]


def _loss(spec: Any) -> Any:
    if spec.loss not in LOSSES:
        raise ConfigError(f"objective.loss: unknown {spec.loss!r}{nearest(spec.loss, LOSSES)}.")
    if spec.label_smoothing == 0:
        return LOSSES[spec.loss]
    if spec.loss not in ("bradley_terry", "robust"):
        raise ConfigError(f"objective.label_smoothing: {spec.loss} has none; use bradley_terry (conservative) or robust.")
    if not 0 <= spec.label_smoothing < 0.5:
        raise ConfigError(f"objective.label_smoothing: expected a rate in [0, 0.5), found {spec.label_smoothing}.")
    return partial(LOSSES[spec.loss], label_smoothing=spec.label_smoothing)
