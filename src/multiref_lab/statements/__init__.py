"""The claims, one idea a file, in the order of the ledger.

A claim says what is stated, where (found in a paper, or derived by us), the number it predicts, how that is measured and by which rule it is decided.
"""

from multiref_lab.claim import Claim
from multiref_lab.statements.bilevel_domination import BILEVEL_DOMINATION
from multiref_lab.statements.bilevel_estimators import BILEVEL_ESTIMATOR_NOISE, BILEVEL_OFF_GIBBS, BILEVEL_RATES
from multiref_lab.statements.bilevel_hypergradients import (
    BILEVEL_CLOSED_FORM,
    BILEVEL_CONJUGATE_GRADIENTS,
    BILEVEL_PENALTY_BIAS,
)
from multiref_lab.statements.bilevel_labels import BILEVEL_LABELS
from multiref_lab.statements.bilevel_objectives import (
    BILEVEL_LIKELIHOOD_LOSES,
    BILEVEL_MISSPECIFIED,
    BILEVEL_STOP_GRADIENT,
    BILEVEL_TWO_LABELS,
    BILEVEL_WIN_RATE,
)
from multiref_lab.statements.bilevel_transformers import BILEVEL_TRANSFORMERS, BILEVEL_TRANSFORMERS_MISSPECIFIED
from multiref_lab.statements.bounds_hold import FORWARD_KL_BOUNDS, REVERSE_KL_BOUNDS
from multiref_lab.statements.conventions import SEVEN_HALVES
from multiref_lab.statements.exact_optima import ALPHA_FAMILY, FORWARD_KL_OPTIMUM, REVERSE_KL_OPTIMUM
from multiref_lab.statements.exponential_regime import EXPONENTIAL_REGIME
from multiref_lab.statements.identities import CONVEXITY, DISAGREEMENT, ESCORT, MERGE, POOL_ORDER, REGRET
from multiref_lab.statements.known_reward import DERIVED_BOUND, GRADIENT_ASCENT, INTERPOLATES, PROMPT_NOISE
from multiref_lab.statements.learned_stability import LEARNED_PARAMETER, LEARNED_VALUE
from multiref_lab.statements.mrpo import MRPO_LOSS, MRPO_LOWER_BOUND, MRPO_WEIGHTS
from multiref_lab.statements.one_or_several import MIXING_HELPS, MIXING_HURTS
from multiref_lab.statements.online_fixed_points import ONLINE_FIXED_POINTS
from multiref_lab.statements.overfitting import DIVERSITY, OVERFITTING
from multiref_lab.statements.price_in_length import PRICE_IN_LENGTH
from multiref_lab.statements.printed_theorem_3 import PRINTED_THEOREM_3
from multiref_lab.statements.rates import (
    FORWARD_KL_PLAIN,
    FORWARD_KL_PROCEDURE,
    FORWARD_KL_RATE,
    FORWARD_KL_SLOWER,
    REVERSE_KL_PLAIN,
    REVERSE_KL_PROCEDURE,
    REVERSE_KL_RATE,
)
from multiref_lab.statements.stability_figures import FIGURE_ITERATIONS, FIGURE_POSITIVE_DEFINITE, FIGURE_SUBOPTIMALITY
from multiref_lab.statements.untestable import FIGURE_1, TABLE_7B
from multiref_lab.statements.worst_case import CROSSOVER, WORST_CASE
from multiref_lab.statements.zipf import ZIPF

__all__ = ["CLAIMS"]

CLAIMS: tuple[Claim, ...] = (
    REVERSE_KL_OPTIMUM,
    FORWARD_KL_OPTIMUM,
    ALPHA_FAMILY,
    MERGE,
    CONVEXITY,
    REGRET,
    DISAGREEMENT,
    ESCORT,
    POOL_ORDER,
    ONLINE_FIXED_POINTS,
    REVERSE_KL_RATE,
    REVERSE_KL_PLAIN,
    REVERSE_KL_BOUNDS,
    REVERSE_KL_PROCEDURE,
    EXPONENTIAL_REGIME,
    WORST_CASE,
    CROSSOVER,
    FORWARD_KL_RATE,
    FORWARD_KL_PLAIN,
    FORWARD_KL_BOUNDS,
    FORWARD_KL_PROCEDURE,
    FORWARD_KL_SLOWER,
    MIXING_HELPS,
    MIXING_HURTS,
    PRICE_IN_LENGTH,
    OVERFITTING,
    DIVERSITY,
    MRPO_LOWER_BOUND,
    MRPO_LOSS,
    MRPO_WEIGHTS,
    LEARNED_PARAMETER,
    LEARNED_VALUE,
    INTERPOLATES,
    DERIVED_BOUND,
    ZIPF,
    PROMPT_NOISE,
    PRINTED_THEOREM_3,
    GRADIENT_ASCENT,
    FIGURE_POSITIVE_DEFINITE,
    FIGURE_SUBOPTIMALITY,
    FIGURE_ITERATIONS,
    BILEVEL_CLOSED_FORM,
    BILEVEL_PENALTY_BIAS,
    BILEVEL_CONJUGATE_GRADIENTS,
    BILEVEL_ESTIMATOR_NOISE,
    BILEVEL_OFF_GIBBS,
    BILEVEL_RATES,
    BILEVEL_DOMINATION,
    BILEVEL_LIKELIHOOD_LOSES,
    BILEVEL_STOP_GRADIENT,
    BILEVEL_TWO_LABELS,
    BILEVEL_WIN_RATE,
    BILEVEL_MISSPECIFIED,
    BILEVEL_TRANSFORMERS,
    BILEVEL_TRANSFORMERS_MISSPECIFIED,
    BILEVEL_LABELS,
    SEVEN_HALVES,
    TABLE_7B,
    FIGURE_1,
)
