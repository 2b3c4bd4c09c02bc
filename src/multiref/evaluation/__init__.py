"""Evaluation: policies under one yardstick, with errors. `compare` where the support can be enumerated, `compare_samples` where
it cannot.
`inspect` says what reference scores are worth on preference pairs, before any training.

Numbers out, a value per method, metric and unit (a seed, or a prompt); `report` shows them.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
