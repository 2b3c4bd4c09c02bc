"""How far RLHF variants move when one example is replaced or left out: the experiment behind `multiref stability`.
Ours, not a paper's.

`axes(…)` lists what is varied, `experiment(…)` measures it cell by cell and goes on where it stopped,
`write(…)` draws and tabulates.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
