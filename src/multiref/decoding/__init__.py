"""The optimum without training: draws of π* ∝ P_0 e^{r/β} as a policy of whole completions, with what they are worth.

`sample(prompts, refs, regularizer, reward=…, beta=…)` → `Draws`. Heavy imports happen at first use; names stand in
`__init__.pyi`.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
