"""Policy-gradient training under K references, and multi-teacher distillation:
the penalty that one thinks one optimises is the one optimised.

Estimators and their fixed points are arrays only (`penalty`, `advantages`, `backward_induction`);
`OnlineTrainer` is the loop around them.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
