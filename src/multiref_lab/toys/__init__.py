"""Toy policies, rewards and oracles on which everything can be summed: the doubles behind the claims and the races.

Tables over all completions of a few tokens, small transformers with several seeds side by side, and the labels of a true reward.
"""

from multiref_lab.toys.batched_transformer import BatchedTransformer, TransformerReward
from multiref_lab.toys.enumerable import (
    LinearReward,
    LogLinearPolicy,
    Size,
    TableOracle,
    TableReward,
    TabularPolicy,
    ToyPolicy,
    at,
    completion_index,
    every_completion,
)

__all__ = [
    "BatchedTransformer",
    "LinearReward",
    "LogLinearPolicy",
    "Size",
    "TableOracle",
    "TableReward",
    "TabularPolicy",
    "ToyPolicy",
    "TransformerReward",
    "at",
    "completion_index",
    "every_completion",
]
