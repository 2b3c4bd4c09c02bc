"""The papers as experiments: claims with verdicts and their ledger, stability, frontier, races, the demo's world.

`claims()` lists what is claimed, `verify(name)` decides one, `Ledger` keeps the verdicts;
`Experiment` carries out a grid of one's own; `problems`, `sample_pairs` and the estimators serve it.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
