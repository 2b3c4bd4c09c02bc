"""Theorems as experiments: small exact worlds, estimators that fit thousands of data sets at once, and claims that end in a verdict.

`claims()` lists what is claimed, `verify(name)` decides one, `Ledger` keeps the verdicts; `problems`, `sample_pairs` and the estimators serve one's own.
"""

from multiref.lab import problems
from multiref.lab.claim import Check, Claim, Curve, Effort, Estimate, Figure, Measurement, Verdict
from multiref.lab.estimators import LogisticFit, finite_class_mle, logistic_mle
from multiref.lab.hidden_states import hidden_state_features, principal_features
from multiref.lab.ledger import Ledger
from multiref.lab.preferences import PairCounts, sample_pairs
from multiref.lab.procedure import Loss, plug_in
from multiref.lab.slopes import bootstrap_mean, fit_slope
from multiref.lab.verify import Outcome, claims, find, verify

__all__ = [
    "Check",
    "Claim",
    "Curve",
    "Effort",
    "Estimate",
    "Figure",
    "Ledger",
    "LogisticFit",
    "Loss",
    "Measurement",
    "Outcome",
    "PairCounts",
    "Verdict",
    "bootstrap_mean",
    "claims",
    "find",
    "finite_class_mle",
    "fit_slope",
    "hidden_state_features",
    "logistic_mle",
    "plug_in",
    "principal_features",
    "problems",
    "sample_pairs",
    "verify",
]
