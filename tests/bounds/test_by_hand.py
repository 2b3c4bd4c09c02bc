"""Every bound against its formula written out once more, from the papers and docs/bounds.md, in 40-digit arithmetic.

Nothing is shared with the library: no constant, no lemma, no order of arguments.
Quantities are taken at two points at which none is 0 or 1 and no two agree, so that a changed exponent,
constant or letter in any term, or in any trivial range, shows. At the first point the numbers were worked out by hand too
(`VALUES`), to six digits, for who does not trust the second writing either.
"""

import mpmath
import pytest
from mpmath import exp, log, mpf, sqrt

from multiref import bounds

mpmath.mp.dps = 40

PAIRS = {"samples": 7e6, "beta": 0.7, "coverage": 3.0, "reward_max": 1.7, "class_size": 2000.0, "delta": 0.03}
SAMPLE = {"samples": 5e5, "radius": 2.5, "feature_norm": 1.3, "sigma_max": 0.6, "sigma_min": 0.2, "sigma_min_other": 0.15}
SAMPLE |= {"residual": 0.004}
LEARNED = {"samples": 900.0, "feature_norm": 1.4, "radius": 0.8, "pair_curvature": 0.3}


def without(*names):
    return {name: value for name, value in PAIRS.items() if name not in names}


def regularised_range(q):
    """min(2R, R²/(2β)): 2R bounds E_π̂ g − E_π* g, and γR²/2 bounds (γ/2)·sup Var g for g in [−R, R]."""
    return min(2 * q.reward_max, q.reward_max**2 / (2 * q.beta))


def slope_at(z):
    """σ'(z) = σ(z) σ(−z)."""
    return 1 / ((1 + exp(z)) * (1 + exp(-z)))


def whole(q):
    """|f| ≤ 3RC: a reward of at most (R/3)·C, and a KL of at most 2·R·C, rounded up as the paper does."""
    return 3 * q.radius * q.feature_norm


def squared_gradient(q):
    """‖V_S (θ* − θ)‖ ≤ C² (R/3 + R) = 4RC²/3, squared: 16 R² C⁴ / 9."""
    return 16 * q.radius**2 * q.feature_norm**4 / 9


def gamma_over_n(q):
    """Γ₁/n = 4Rε_n + 8RC³ σ_max / (σ⁺_min σ⁺_min' n)."""
    return 4 * q.radius * q.residual + 8 * q.radius * q.feature_norm**3 * q.sigma_max / (
        q.sigma_min * q.sigma_min_other * q.samples
    )


def stable(q):
    """E_stab = Γ₁/n + 2RC √(Γ₁/n)."""
    return gamma_over_n(q) + 2 * q.radius * q.feature_norm * sqrt(gamma_over_n(q))


def strong_convexity(q):
    """μ = λ_min s'(2RL)/2; s'(z) = 1/(4 cosh²(z/2))."""
    return q.pair_curvature / (8 * mpmath.cosh(q.radius * q.feature_norm) ** 2)


def lipschitz(q):
    """L_f = C² + (8/3) R C³."""
    return q.feature_norm**2 + mpf(8) / 3 * q.radius * q.feature_norm**3


# name → quantities, terms, trivial range
FORMULAS = {
    "maximum-likelihood": (
        without("beta", "coverage"),
        {"estimation": lambda q: 16 * exp(2 * q.reward_max) * log(q.class_size / q.delta) / q.samples},
        lambda q: q.reward_max**2,
    ),
    "reverse-kl-5-2": (
        PAIRS,
        {
            "estimation": lambda q: (
                128 * q.coverage * q.reward_max**2 * exp(4 * q.reward_max) * log(q.class_size / q.delta) / (q.beta * q.samples)
            )
        },
        regularised_range,
    ),
    "reverse-kl-suboptimality": (
        PAIRS,
        {
            "estimation": lambda q: (
                8 * q.coverage * exp(2 * q.reward_max) * log(q.class_size / q.delta) / (q.beta * q.samples)
            )
        },
        regularised_range,
    ),
    "reverse-kl-plain-reward": (
        PAIRS,
        {
            "estimation": lambda q: (
                2 * q.reward_max * exp(q.reward_max) / q.beta * sqrt(q.coverage * log(q.class_size / q.delta) / q.samples)
            )
        },
        lambda q: q.reward_max,
    ),
    "reverse-kl-versus-comparator": (
        {**PAIRS, "log_comparator": 1.9},
        {
            "estimation": lambda q: (
                8 * q.coverage * exp(2 * q.reward_max) * log(q.class_size / q.delta) / (q.beta * q.samples)
            ),
            "regularisation": lambda q: q.beta * q.log_comparator,
        },
        lambda q: q.reward_max,
    ),
    "reverse-kl-from-references": (
        {**without("coverage"), "disagreement": 0.9},
        {
            "estimation": lambda q: (
                8 * exp(q.reward_max / q.beta) * exp(q.disagreement) * exp(q.reward_max) ** 2
                * log(q.class_size / q.delta) / (q.beta * q.samples)
            )
        },
        regularised_range,
    ),
    "forward-kl-6-2": (
        without("beta"),
        {
            "estimation": lambda q: (
                16 * q.coverage * q.reward_max * exp(2 * q.reward_max) * sqrt(log(q.class_size / q.delta) / q.samples)
            )
        },
        lambda q: 2 * q.reward_max,
    ),
    "forward-kl-slow": (
        without("beta"),
        {"estimation": lambda q: 8 * exp(q.reward_max) * sqrt(q.coverage * log(q.class_size / q.delta) / q.samples)},
        lambda q: 2 * q.reward_max,
    ),
    "forward-kl-versus-comparator": (
        {**PAIRS, "comparator_kl": 0.45},
        {
            "estimation": lambda q: 8 * exp(q.reward_max) * sqrt(q.coverage * log(q.class_size / q.delta) / q.samples),
            "regularisation": lambda q: q.beta * q.comparator_kl,
        },
        lambda q: q.reward_max,
    ),
    "forward-kl-fast": (
        {**PAIRS, "sampling_coverage": 2.3},
        {
            "estimation": lambda q: (
                (q.coverage**2 + q.coverage**4 + q.coverage**4 * q.reward_max / q.beta) / q.beta
                * 16 * q.sampling_coverage * exp(2 * q.reward_max) * log(q.class_size / q.delta) / q.samples
            )
        },
        lambda q: 2 * q.reward_max,
    ),
    "subgaussian-suboptimality": (
        {"deviation": 0.45, "beta": 0.7},
        {"error": lambda q: q.deviation * q.deviation / q.beta / 2},
        lambda q: mpf("inf"),
    ),
    "label-privacy-inflation": (
        {"epsilon": 0.6, "reward_max": 1.7},
        {"flips": lambda q: ((exp(q.epsilon) + 1) / (exp(q.epsilon) - 1)) ** 2 / (4 * slope_at(q.reward_max))},
        lambda q: mpf("inf"),
    ),
    "label-privacy-printed": (
        {"small_epsilon": 0.6},
        {"flips": lambda q: (exp(q.small_epsilon) - 1) ** -2},
        lambda q: mpf("inf"),
    ),
    "own-pairs-suboptimality": (
        {"samples": 5e3, "beta": 0.7, "dimension": 6.0, "reward_max": 1.7},
        {"estimation": lambda q: q.dimension / (4 * q.beta * slope_at(q.reward_max) * q.samples)},
        regularised_range,
    ),
    "two-stage": (
        {"beta": 0.7, "coverage": 3.0, "reward_max": 1.7, "class_size": 2000.0, "target": 0.02, "delta": 0.03},
        {
            "first stage": lambda q: q.coverage * exp(q.reward_max) * log(2 * q.class_size / q.delta) / q.beta**2,
            "second stage": lambda q: exp(q.reward_max) * log(q.class_size / q.delta) / (q.beta * q.target),
        },
        lambda q: mpf("inf"),
    ),
    "reward-shift": (
        {"samples": 900.0, "rollouts": 4.0, "beta": 0.2, "tau": 3.0, "chi_squared": 2.2, "squared_error": 0.05,
         "clip_bias": 0.3, "delta": 0.03},
        {
            "sampling": lambda q: (
                (1 + 2 * q.beta * q.tau) * sqrt(log(4 / q.delta) / 2 / q.samples) * (1 + 1 / sqrt(q.rollouts))
            ),
            "reward shift": lambda q: sqrt((1 + q.chi_squared) * q.squared_error),
            "clipping": lambda q: q.beta * q.clip_bias,
        },
        lambda q: 1 + 2 * q.beta * q.tau + q.beta * q.clip_bias,
    ),
    "two-stage-least": (
        {"small_beta": 0.02, "class_size": 2000.0, "small_target": 0.003},
        {"labels": lambda q: log(q.class_size) / (q.small_target * max(q.small_beta, q.small_target))},
        lambda q: mpf("inf"),
    ),
    "pessimism-suboptimality": (
        {"beta": 0.7, "squared_width": 0.03}, {"error": lambda q: q.squared_width * 2 / q.beta}, lambda q: mpf("inf"),
    ),
    "reward-shift-average": (
        {"samples": 900.0, "rollouts": 4.0, "beta": 0.2, "tau": 3.0, "chi_squared": 2.2, "squared_error": 0.05,
         "clip_bias": 0.3, "posterior_kl": 2.5, "delta": 0.03},
        {
            "sampling": lambda q: (
                (1 + 2 * q.beta * q.tau) / sqrt(2 * q.samples) * (
                    sqrt(q.posterior_kl + log(4) - log(q.delta) + log(q.samples) / 2)
                    + sqrt(q.posterior_kl + log(4) - log(q.delta) + log(q.samples * q.rollouts) / 2) / sqrt(q.rollouts)
                )
            ),
            "reward shift": lambda q: sqrt((1 + q.chi_squared) * q.squared_error),
            "clipping": lambda q: q.beta * q.clip_bias,
        },
        lambda q: 1 + 2 * q.beta * q.tau + q.beta * q.clip_bias,
    ),
    "stability-lemma-1": (
        {"samples": 800.0, "radius": 2.5, "feature_norm": 1.3, "delta": 0.03},
        {"concentration": lambda q: 3 * q.radius * q.feature_norm * sqrt(2 * log(2 / q.delta) / q.samples)},
        whole,
    ),
    "stability-theorem-1": (
        {"samples": 1e6, "radius": 2.5, "feature_norm": 1.3, "dimension": 7.0, "curvature": 0.2},
        {
            "failure probability": lambda q: (
                (432 * q.radius * q.feature_norm**5 / q.curvature**2) ** q.dimension
                / exp(q.samples * q.curvature**2 / (128 * q.feature_norm**4))
            )
        },
        lambda q: mpf(1),
    ),
    "stability-theorem-2": (
        SAMPLE,
        {
            "Γ₁/n": gamma_over_n,
            "2RC √(Γ₁/n)": lambda q: 2 * q.radius * q.feature_norm * sqrt(gamma_over_n(q)),
        },
        whole,
    ),
    "stability-theorem-2-gap": (
        {**SAMPLE, "delta": 0.03},
        {
            "stability": lambda q: stable(q) * log(q.samples) * log(1 / q.delta),
            "sampling": lambda q: 6 * q.radius * q.feature_norm * sqrt(log(1 / q.delta) / q.samples),
        },
        whole,
    ),
    "stability-theorem-3": (
        {**SAMPLE, "delta": 0.03},
        {
            "stability": lambda q: stable(q) * log(q.samples) * log(2 / q.delta),
            "sampling": lambda q: 6 * q.radius * q.feature_norm * sqrt(log(2 / q.delta) / q.samples),
            "concentration": lambda q: 3 * q.radius * q.feature_norm * sqrt(2 * log(4 / q.delta) / q.samples),
        },
        whole,
    ),
    "stability-corollary-1": (
        {"gradient_norm": 0.02, **{name: value for name, value in SAMPLE.items() if name != "samples"}},
        {
            "q": lambda q: (
                4 * q.radius * q.residual
                + 2 * q.feature_norm * q.gradient_norm * q.sigma_max / (q.sigma_min * q.sigma_min_other)
            ),
            "2RC√q": lambda q: (
                2 * q.radius * q.feature_norm
                * sqrt(
                    4 * q.radius * q.residual
                    + 2 * q.feature_norm * q.gradient_norm * q.sigma_max / (q.sigma_min * q.sigma_min_other)
                )
            ),
        },
        whole,
    ),
    "stability-gradient-ascent-norm": (
        {"iterations": 60.0, "radius": 2.5, "feature_norm": 1.3, "smoothness": 3.1},
        {"squared gradient norm": lambda q: 12 * q.smoothness * q.radius * q.feature_norm / q.iterations},
        squared_gradient,
    ),
    "stability-gradient-ascent": (
        {"samples": 800.0, "iterations": 60.0, "radius": 2.5, "feature_norm": 1.3, "condition": 3.4, "residual": 0.004},
        {
            "residual": lambda q: sqrt(q.residual),
            "optimisation": lambda q: q.condition / sqrt(sqrt(q.iterations)),
            "statistics": lambda q: q.condition / sqrt(q.samples),
        },
        whole,
    ),
    "stability-stochastic-ascent-norm": (
        {"iterations": 60.0, "radius": 2.5, "feature_norm": 1.3, "smoothness": 3.1, "mixing": 0.6, "delta": 0.03},
        {
            "start": lambda q: (
                36 * q.smoothness * q.radius * q.feature_norm / sqrt(q.iterations)
                + 12 * q.radius**2 * q.feature_norm**4 / sqrt(q.iterations)
            ),
            "noise": lambda q: 12 * q.radius**2 * q.feature_norm**4 * log(q.iterations) / sqrt(q.iterations),
            "confidence": lambda q: 6 * q.smoothness * log(1 / q.delta) / (q.mixing * sqrt(q.iterations)),
        },
        squared_gradient,
    ),
    "stability-stochastic-ascent": (
        {"samples": 800.0, "iterations": 60.0, "radius": 2.5, "feature_norm": 1.3, "condition": 3.4, "residual": 0.004},
        {
            "residual": lambda q: sqrt(q.residual),
            "optimisation": lambda q: q.condition / sqrt(sqrt(sqrt(q.iterations))),
            "statistics": lambda q: q.condition / sqrt(q.samples),
        },
        whole,
    ),
    "interpolation": (
        {"gradient_norm": 0.02, "sigma_min": 0.2, "feature_norm": 1.3, "distance": 2.2, "radius": 2.5, "residual": 0.03},
        {
            "optimisation": lambda q: (q.feature_norm * q.gradient_norm / q.sigma_min) ** 2 / 2,
            "unseen directions": lambda q: (q.distance * q.residual) ** 2 / 2,
            "cross term": lambda q: q.feature_norm * q.gradient_norm * q.distance * q.residual / q.sigma_min,
        },
        whole,
    ),
    "interpolation-optimum": (
        {"radius": 2.5, "feature_norm": 1.3, "residual": 0.03},
        {"unseen directions": lambda q: 8 * (q.radius * q.residual) ** 2 / 9},
        whole,
    ),
    "interpolation-gradient-ascent": (
        {"iterations": 6e4, "radius": 2.5, "feature_norm": 1.3, "sigma_min": 0.2, "residual": 0.03},
        {
            "optimisation": lambda q: 6 * lipschitz(q) * q.radius * q.feature_norm**3 / (q.iterations * q.sigma_min**2),
            "unseen directions": lambda q: 8 * (q.radius * q.residual) ** 2 / 9,
            "cross term": lambda q: (
                4 * q.radius * q.residual * q.feature_norm / (3 * q.sigma_min)
                * sqrt(12 * lipschitz(q) * q.radius * q.feature_norm / q.iterations)
            ),
        },
        whole,
    ),
    "learned-reward-parameter": (
        LEARNED,
        {"replace-one": lambda q: 4 * q.feature_norm / (strong_convexity(q) * q.samples)},
        lambda q: 2 * q.radius,
    ),
    "learned-reward-value": (
        {**LEARNED, "distance": 0.35},
        {"replace-one": lambda q: 4 * q.feature_norm**3 * q.distance / (strong_convexity(q) * q.samples)},
        whole,
    ),
}  # fmt: skip

POINTS = ("first", "second")


class At:
    """Quantities as attributes, in 40 digits."""

    def __init__(self, quantities):
        self.__dict__.update({name: mpf(value) for name, value in quantities.items()})


def at(name: str, point: str) -> dict[str, float]:
    """The table's quantities, or each moved by its own factor between 1.01 and 1.08."""
    given = FORMULAS[name][0]
    return given if point == "first" else {q: value * (1.01 + 0.01 * i) for i, (q, value) in enumerate(given.items())}


def test_no_statement_is_left_out():
    assert set(FORMULAS) == set(bounds.statements())


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("name", FORMULAS)
def test_every_term_and_the_trivial_range_are_the_formulas(name, point):
    quantities = at(name, point)
    assert set(quantities) == set(bounds.statements()[name].parameters)  # nothing is left at a default
    assert len(set(quantities.values())) == len(quantities) and not {0.0, 1.0} & set(quantities.values())
    found = bounds.statements()[name](**quantities)
    _, terms, trivial = FORMULAS[name]
    assert set(found.terms) == set(terms)
    for term, formula in terms.items():
        assert found.terms[term] == pytest.approx(float(formula(At(quantities))), rel=1e-11), term
    assert found.value == pytest.approx(float(sum(formula(At(quantities)) for formula in terms.values())), rel=1e-11)
    assert found.trivial == pytest.approx(float(trivial(At(quantities))), rel=1e-13)


# At the first point, with a pocket calculator: log(2000/0.03) = 11.107460, e^1.7 = 5.473947, e^3.4 = 29.964100,
# e^6.8 = 897.847292.
VALUES = {
    "maximum-likelihood": 16 * 29.964100 * 11.107460 / 7e6,
    "reverse-kl-5-2": 128 * 3 * 2.89 * 897.847292 * 11.107460 / (0.7 * 7e6),
    "reverse-kl-suboptimality": 8 * 3 * 29.964100 * 11.107460 / (0.7 * 7e6),
    "reverse-kl-plain-reward": 2 * 1.7 * 5.473947 / 0.7 * 0.00218180,  # √(3 · 11.107460 / 7e6)
    "reverse-kl-versus-comparator": 0.00163018 + 0.7 * 1.9,
    "reverse-kl-from-references": 8 * 11.342667 * 2.459603 * 29.964100 * 11.107460 / (0.7 * 7e6),  # e^{17/7}, e^0.9
    "forward-kl-6-2": 16 * 3 * 1.7 * 29.964100 * 0.00125967,  # √(11.107460 / 7e6)
    "forward-kl-slow": 8 * 5.473947 * 0.00218180,
    "forward-kl-versus-comparator": 8 * 5.473947 * 0.00218180 + 0.7 * 0.45,
    "forward-kl-fast": 9 / 0.7 * (1 + 9 * (1 + 1.7 / 0.7)) * 2.3 * 16 * 29.964100 * 11.107460 / 7e6,
    "subgaussian-suboptimality": 0.2025 / 1.4,
    "own-pairs-suboptimality": 6 / (4 * 0.7 * 0.1306057 * 5e3),  # σ'(1.7) = 0.845535 · 0.154465
    "label-privacy-printed": 1 / 0.822119**2,
    "stability-lemma-1": 9.75 * 0.102466,  # √(2 log(200/3) / 800) = √(2 · 4.199705 / 800)
    "stability-gradient-ascent-norm": 12 * 3.1 * 3.25 / 60,
    "stability-gradient-ascent": 0.0632456 + 3.4 * (0.359304 + 0.0353553),
    "stability-stochastic-ascent": 0.0632456 + 3.4 * (0.599420 + 0.0353553),
    "interpolation": 0.5 * (0.13 + 0.066) ** 2,
    "interpolation-optimum": 8 / 9 * 0.005625,
}


@pytest.mark.parametrize("name", VALUES)
def test_values_worked_out_with_a_calculator(name):
    assert bounds.statements()[name](**at(name, "first")).value == pytest.approx(VALUES[name], rel=2e-5)


def test_the_trivial_range_of_reverse_kl_is_the_smaller_of_its_two():
    """β = 0.7: R²/(2β) = 2.89/1.4 = 2.0643. β = 0.1: 2R = 3.4 < 14.45."""
    for beta, expected in ((0.7, 2.89 / 1.4), (0.1, 3.4)):
        for name in ("reverse-kl-5-2", "reverse-kl-suboptimality"):
            assert bounds.statements()[name](**{**PAIRS, "beta": beta}).trivial == pytest.approx(expected, rel=1e-12)
