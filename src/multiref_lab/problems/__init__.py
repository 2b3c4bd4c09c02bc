"""Worlds small enough to know exactly, many at once: every array has the seeds S on one axis.

Tabular and log-linear contextual bandits under K references, finite reward classes, enumerable language models,
and prompts with a known reward.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
