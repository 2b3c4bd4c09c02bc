"""Bilevel problems, many seeds at once, and the race of online algorithms on worlds in which everything is known.

Linear rewards (`linear_world`): where each upper objective ends, what each estimator does,
classes that cannot hold the Gibbs policy. Transformers on enumerable worlds (`enumerable_world`):
every method under one budget of labels. `python -m multiref_lab.races` runs the race.
"""

from multiref_lab.races.audit import Audit, audit, best_in_class, offline_fit, on_policy_fit
from multiref_lab.races.enumerable_world import EnumerableWorld, enumerable_world, price_of_labels
from multiref_lab.races.minimise import minimise
from multiref_lab.races.restricted import (
    Restricted,
    exact_hypergradient,
    expected_estimates,
    log_linear,
    outer_path,
    settle,
    small_transformer,
)
from multiref_lab.races.sampled import ESTIMATORS, ROLLOUTS, descend, sampled_gradient
from multiref_lab.races.world import LinearWorld, linear_world

__all__ = [
    "ESTIMATORS",
    "ROLLOUTS",
    "Audit",
    "EnumerableWorld",
    "LinearWorld",
    "Restricted",
    "audit",
    "best_in_class",
    "descend",
    "enumerable_world",
    "exact_hypergradient",
    "expected_estimates",
    "linear_world",
    "log_linear",
    "minimise",
    "offline_fit",
    "on_policy_fit",
    "outer_path",
    "price_of_labels",
    "sampled_gradient",
    "settle",
    "small_transformer",
]
