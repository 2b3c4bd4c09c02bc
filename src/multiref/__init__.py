"""multiref: align a language model against several reference models at once, under an objective one can check.

Everything loads at first use, so that `import multiref` (and `multiref --help`) does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiref import (
        bounds,
        data,
        divergences,
        errors,
        evaluation,
        exact,
        integrations,
        losses,
        models,
        pools,
        references,
        report,
        training,
        weighting,
    )
    from multiref.references import References
    from multiref.regularizers import AlphaDivergence, ForwardKL, PooledKL, Regularizer, ReverseKL

__version__ = "0.1.0"
_HOMES = {"References": "references"} | dict.fromkeys(
    ("AlphaDivergence", "ForwardKL", "PooledKL", "Regularizer", "ReverseKL"), "regularizers"
)

__all__ = [
    "AlphaDivergence",
    "ForwardKL",
    "PooledKL",
    "References",
    "Regularizer",
    "ReverseKL",
    "bounds",
    "data",
    "divergences",
    "errors",
    "evaluation",
    "exact",
    "integrations",
    "losses",
    "models",
    "pools",
    "references",
    "report",
    "training",
    "weighting",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"multiref.{_HOMES[name]}"), name)
    if name in __all__:
        return import_module(f"multiref.{name}")
    raise AttributeError(f"module 'multiref' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
