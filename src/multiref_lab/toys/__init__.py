"""Toy policies, rewards and oracles on which everything can be summed: the doubles behind the claims and the races.

`TabularPolicy`, `LogLinearPolicy`, `TableReward`, `LinearReward` and `TableOracle` are tables over all completions of a few tokens; `BatchedTransformer` and
`TransformerReward` are small transformers, several seeds side by side.
"""

from multiref_lab.toys.batched_transformer import BatchedTransformer, TransformerReward
from multiref_lab.toys.enumerable import (
    LinearReward,
    LogLinearPolicy,
    TableOracle,
    TableReward,
    TabularPolicy,
    at,
    completion_index,
    every_completion,
)

__all__ = [
    "BatchedTransformer",
    "LinearReward",
    "LogLinearPolicy",
    "TableOracle",
    "TableReward",
    "TabularPolicy",
    "TransformerReward",
    "at",
    "completion_index",
    "every_completion",
]
