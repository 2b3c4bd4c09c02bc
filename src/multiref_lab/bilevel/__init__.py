"""Bilevel problems with a linear reward, many seeds at once: worlds, a batched minimiser, where each upper objective ends, how fast each estimator goes."""

from multiref_lab.bilevel.audit import Audit, audit, best_in_class, offline_fit, on_policy_fit
from multiref_lab.bilevel.minimise import minimise
from multiref_lab.bilevel.world import LinearReward, linear_world

__all__ = ["Audit", "LinearReward", "audit", "best_in_class", "linear_world", "minimise", "offline_fit", "on_policy_fit"]
