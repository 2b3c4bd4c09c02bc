"""Exact solutions on finite supports: the optimum, its value, and the merge of single-reference optima.

Tensors in, tensors out, batched over any leading shape, differentiable, accurate to the last digits in float64.
"""

from multiref.exact._merge import merge
from multiref.exact._objective import value
from multiref.exact._solve import Solution, solve

__all__ = ["Solution", "merge", "solve", "value"]
