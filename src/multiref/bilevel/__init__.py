"""Reward learning from preferences over completions of the policy that the reward induces:
a bilevel problem, and its hyper-gradients.

The problem, four upper objectives, the closed form, the penalty form, three sampled estimators, and conjugate gradients.
Arrays only; everything is per prompt, in the reward table: chain it through any reward model with `reward.backward(gradient)`.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
