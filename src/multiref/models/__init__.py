"""Language models and tables with one interface: load, encode text, log-probabilities of completions, samples.

Heavy imports happen at first use; what there is stands in `__init__.pyi`.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
