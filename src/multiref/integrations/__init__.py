"""Integrations: several references for people who stay with another trainer. `integrations.trl` fills the columns that TRL's
DPO reads, and makes the reward that its RLOO lacks; `integrations.lm_eval` makes policies, the token pool and the optimum
models of lm-evaluation-harness.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
