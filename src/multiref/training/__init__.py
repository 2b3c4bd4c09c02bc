"""Training: a policy from preference pairs and stored scores, as a `transformers.Trainer` whose objective is a small value.

`PreferenceTrainer(model, regularizer=…, beta=…, scores=…, args=…)`; what it minimises is an `Objective`:
`Preference`, or one of the published rivals (`MultiDPO`, and the wrappers `TrustRegion`, `AdaptiveWeights`,
`LengthNormalised`) under the same trainer. Weights that change while
training are a `WeightStrategy`: `SlidingWindow`, `ThompsonSampling`. `RewardTrainer` makes reward models from pairs.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
