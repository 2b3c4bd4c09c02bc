"""Every theorem as a function of its quantities: a number on one screen, with what it assumes and where it comes from.

`found` statements carry the constants of the papers, `derived` ones are ours, `provisional` ones have a form without constants.
Coverage constants come from finite problems or from scores; the conversions say what a letter or an ε means in another paper.
"""

from collections.abc import Mapping

from multiref.bounds.conventions import Exponent, Stationarity, convert_exponent, convert_strength, convert_target, strengths
from multiref.bounds.coverage import (
    CoverageEstimate,
    ball_coverage,
    coverage,
    coverage_from_scores,
    path_coverage,
    sampling_coverage,
)
from multiref.bounds.preferences import (
    forward_kl_6_2,
    forward_kl_fast,
    forward_kl_slow,
    forward_kl_versus_comparator,
    maximum_likelihood,
    reverse_kl_5_2,
    reverse_kl_from_references,
    reverse_kl_plain_reward,
    reverse_kl_suboptimality,
    reverse_kl_versus_comparator,
)
from multiref.bounds.quantities import check_reward_range, describe
from multiref.bounds.stability import (
    interpolation,
    interpolation_gradient_ascent,
    interpolation_optimum,
    learned_reward_parameter,
    learned_reward_value,
    stability_corollary_1,
    stability_gradient_ascent,
    stability_gradient_ascent_norm,
    stability_lemma_1,
    stability_stochastic_ascent,
    stability_stochastic_ascent_norm,
    stability_theorem_1,
    stability_theorem_2,
    stability_theorem_2_gap,
    stability_theorem_3,
)
from multiref.bounds.statement import Bound, Statement, Status
from multiref.bounds.unavailable import UNAVAILABLE, Unavailable

__all__ = [
    "UNAVAILABLE",
    "Bound",
    "CoverageEstimate",
    "Exponent",
    "Statement",
    "Stationarity",
    "Status",
    "Unavailable",
    "ball_coverage",
    "check_reward_range",
    "convert_exponent",
    "convert_strength",
    "convert_target",
    "coverage",
    "coverage_from_scores",
    "describe",
    "forward_kl_6_2",
    "forward_kl_fast",
    "forward_kl_slow",
    "forward_kl_versus_comparator",
    "interpolation",
    "interpolation_gradient_ascent",
    "interpolation_optimum",
    "learned_reward_parameter",
    "learned_reward_value",
    "maximum_likelihood",
    "path_coverage",
    "reverse_kl_5_2",
    "reverse_kl_from_references",
    "reverse_kl_plain_reward",
    "reverse_kl_suboptimality",
    "reverse_kl_versus_comparator",
    "sampling_coverage",
    "stability_corollary_1",
    "stability_gradient_ascent",
    "stability_gradient_ascent_norm",
    "stability_lemma_1",
    "stability_stochastic_ascent",
    "stability_stochastic_ascent_norm",
    "stability_theorem_1",
    "stability_theorem_2",
    "stability_theorem_2_gap",
    "stability_theorem_3",
    "statements",
    "strengths",
]

_STATEMENTS = (
    maximum_likelihood,
    reverse_kl_5_2,
    reverse_kl_suboptimality,
    reverse_kl_plain_reward,
    reverse_kl_versus_comparator,
    reverse_kl_from_references,
    forward_kl_6_2,
    forward_kl_slow,
    forward_kl_versus_comparator,
    forward_kl_fast,
    stability_lemma_1,
    stability_theorem_1,
    stability_theorem_2,
    stability_theorem_2_gap,
    stability_theorem_3,
    stability_corollary_1,
    stability_gradient_ascent_norm,
    stability_gradient_ascent,
    stability_stochastic_ascent_norm,
    stability_stochastic_ascent,
    interpolation,
    interpolation_optimum,
    interpolation_gradient_ascent,
    learned_reward_parameter,
    learned_reward_value,
)


def statements() -> Mapping[str, Statement]:
    """Every statement, by the name that the command line uses."""
    return {each.name: each for each in _STATEMENTS}
