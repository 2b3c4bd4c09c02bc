"""A generated world in which everything is exact: word problems of two skills, small models of them,
answers that can all be enumerated.

`make(cache)` trains (once) a base model and two specialists; `run.run(...)`
aligns the base model under several rules and measures each against the exact optimum.
The lab and the recipes use the same world: `World`, `WorldSettings`, `make`, `PairLaw`, `draw_pairs`, `Yardstick`.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
