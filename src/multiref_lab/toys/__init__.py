"""Toy policies, rewards and oracles on which everything can be summed: the doubles behind the claims and the races.

Tables over all completions of a few tokens, small transformers with several seeds side by side,
the labels of a true reward, and online rules with their samples summed out.
"""

from multiref_lab.toys.batched_transformer import BatchedTransformer, TransformerReward
from multiref_lab.toys.enumerable import (
    LinearReward,
    LogLinearPolicy,
    Size,
    TableOracle,
    TabularPolicy,
    ToyPolicy,
    at,
    completion_index,
    every_completion,
)
from multiref_lab.toys.enumerated_rules import enumerated_samples, expected_surrogate, standardised_fixed_point

__all__ = [
    "BatchedTransformer",
    "LinearReward",
    "LogLinearPolicy",
    "Size",
    "TableOracle",
    "TabularPolicy",
    "ToyPolicy",
    "TransformerReward",
    "at",
    "completion_index",
    "enumerated_samples",
    "every_completion",
    "expected_surrogate",
    "standardised_fixed_point",
]
