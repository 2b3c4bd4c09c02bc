"""Maximum likelihood from preference counts, thousands of fits on one tensor axis.

A finite class of rewards (the papers' setting) and linear rewards (batched Newton).
"""

from multiref_lab.estimators.finite_class import finite_class_mle, likeliest
from multiref_lab.estimators.logistic import LogisticFit, logistic_mle

__all__ = ["LogisticFit", "finite_class_mle", "likeliest", "logistic_mle"]
