"""multiref: align a language model against several reference models at once, under an objective one can check.

The quiet half (tensors in, tensors out) is imported here; rooms that know models and files load at first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from multiref import divergences, errors, exact, losses, pools
from multiref.regularizers import AlphaDivergence, ForwardKL, PooledKL, Regularizer, ReverseKL

if TYPE_CHECKING:
    from multiref import bounds, data, demo, evaluation, integrations, lab, models, references, report, training, weighting
    from multiref.references import References

__version__ = "0.1.0"

__all__ = [
    "AlphaDivergence",
    "ForwardKL",
    "PooledKL",
    "References",
    "Regularizer",
    "ReverseKL",
    "bounds",
    "data",
    "demo",
    "divergences",
    "errors",
    "evaluation",
    "exact",
    "integrations",
    "lab",
    "losses",
    "models",
    "pools",
    "references",
    "report",
    "training",
    "weighting",
]


def __getattr__(name: str) -> Any:
    if name == "References":
        return import_module("multiref.references").References
    if name in __all__:
        return import_module(f"multiref.{name}")
    raise AttributeError(f"module 'multiref' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
