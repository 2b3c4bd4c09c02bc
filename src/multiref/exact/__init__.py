"""Exact solutions on finite supports: the optimum, its value, the merge of single-reference optima, and equilibria.

Tensors in, tensors out, batched over any leading shape, differentiable, accurate to the last digits in float64.
"""

from multiref.exact._nash import duality_gap, nash
from multiref.exact._solve import Solution, merge, solve, value

__all__ = ["Solution", "duality_gap", "merge", "nash", "solve", "value"]
