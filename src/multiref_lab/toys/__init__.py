"""Toy policies, rewards and oracles on which everything can be summed: the doubles behind the claims and the races.

Tables over all completions of a few tokens, small transformers with several seeds side by side,
the labels of a true reward, and online rules with their samples summed out.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
