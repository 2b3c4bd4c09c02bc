"""Worlds small enough to know exactly, many at once: every array has the seeds S on one axis.

Tabular and log-linear contextual bandits under K references, finite reward classes, enumerable language models,
and prompts with a known reward.
"""

from multiref_lab.problems.bandits import Bandits, bandits_of_seed, random_bandits, random_logps
from multiref_lab.problems.finite_class import random_class, refined_class
from multiref_lab.problems.language import accumulate, random_language
from multiref_lab.problems.linear import LinearBandits, linear_bandits
from multiref_lab.problems.prompts import KnownReward, known_reward

__all__ = [
    "Bandits",
    "KnownReward",
    "LinearBandits",
    "accumulate",
    "bandits_of_seed",
    "known_reward",
    "linear_bandits",
    "random_bandits",
    "random_class",
    "random_language",
    "random_logps",
    "refined_class",
]
