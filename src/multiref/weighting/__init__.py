"""Weights over references, from margins: the strategies of the literature, and the weights under which a pool predicts
preferences best.

Tensors in, tensors out: margins [K, P] = log π_k(chosen) − log π_k(rejected), references first.
A weight never promises a gain in the regularised value, which is convex in the weights (it is largest at a single reference);
it is a choice of objective.
Of samples: `importance_weights` makes those of K policies samples of their geometric mean, tilted by a reward;
`best_of_law` is the law of soft best-of-n; `log_mean_bounds` are certified bounds of means.
"""

from multiref.weighting.best_of import best_of_law
from multiref.weighting.importance import importance_weights, log_importance_weights
from multiref.weighting.intervals import log_mean_bounds
from multiref.weighting.preference_fit import PreferenceFit, fit_preferences
from multiref.weighting.strategies import arwc, uniform, vaw, vdw

__all__ = [
    "PreferenceFit",
    "arwc",
    "best_of_law",
    "fit_preferences",
    "importance_weights",
    "log_importance_weights",
    "log_mean_bounds",
    "uniform",
    "vaw",
    "vdw",
]
