"""Language models and tables with one interface: load, encode text, log-probabilities of completions. Heavy imports on first use.

Public: Encoded, LanguageModel, Product, ProductConfig, Tabular, TabularConfig, best_device, completion_logps, encode, encode_many, load, product_of,
score_completions, score_tokens, tabular_tokenizer, token_budget_batches, token_logps.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiref.models.batching import token_budget_batches
    from multiref.models.encoding import Encoded, encode, encode_many
    from multiref.models.loading import LanguageModel, best_device, load
    from multiref.models.logps import completion_logps, token_logps
    from multiref.models.product import Product, ProductConfig, product_of
    from multiref.models.scoring import score_completions, score_tokens
    from multiref.models.tabular import Tabular, TabularConfig, tabular_tokenizer

_HOMES = {
    "token_budget_batches": "batching",
    "Encoded": "encoding",
    "encode": "encoding",
    "encode_many": "encoding",
    "score_completions": "scoring",
    "score_tokens": "scoring",
    "LanguageModel": "loading",
    "best_device": "loading",
    "load": "loading",
    "completion_logps": "logps",
    "token_logps": "logps",
    "Product": "product",
    "ProductConfig": "product",
    "product_of": "product",
    "Tabular": "tabular",
    "TabularConfig": "tabular",
    "tabular_tokenizer": "tabular",
}

__all__ = [
    "Encoded",
    "LanguageModel",
    "Product",
    "ProductConfig",
    "Tabular",
    "TabularConfig",
    "best_device",
    "completion_logps",
    "encode",
    "encode_many",
    "load",
    "product_of",
    "score_completions",
    "score_tokens",
    "tabular_tokenizer",
    "token_budget_batches",
    "token_logps",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
