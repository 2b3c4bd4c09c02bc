"""Every statement against its constants worked out by hand, its inversion against the closed form, and its refusals."""

import itertools
import math
from functools import partial

import pytest
import torch
from scipy.linalg import solve_continuous_lyapunov, solve_discrete_lyapunov
from torch.distributions import MultivariateNormal, kl_divergence

from multiref import ReverseKL, bounds, exact
from multiref.errors import ArgumentError

GIVEN = {"samples": 1e4, "beta": 0.5, "coverage": 3.0, "reward_max": 1.0, "class_size": 2000, "delta": 0.05}
LOG = math.log(2000 / 0.05)
E = math.e


def given(*names):
    return {name: GIVEN[name] for name in names}


FULL = ("samples", "beta", "coverage", "reward_max", "class_size", "delta")
NO_BETA = ("samples", "coverage", "reward_max", "class_size", "delta")
HAND_WORKED = [
    (bounds.maximum_likelihood(**given("samples", "reward_max", "class_size", "delta")), 16 * E**2 * LOG / 1e4),
    (bounds.reverse_kl_5_2(**given(*FULL)), 2 * 3 * 128 * E**4 * LOG / 1e4),
    (bounds.reverse_kl_suboptimality(**given(*FULL)), 8 * 2 * 3 * E**2 * LOG / 1e4),
    (bounds.reverse_kl_plain_reward(**given(*FULL)), 2 * 2 * E * math.sqrt(3 * LOG / 1e4)),
    (bounds.reverse_kl_versus_comparator(**given(*FULL), log_comparator=2.0), 48 * E**2 * LOG / 1e4 + 0.5 * 2),
    (
        bounds.reverse_kl_from_references(**given("samples", "beta", "reward_max", "class_size", "delta"), disagreement=0.7),
        16 * math.exp(2 + 0.7) * E**2 * LOG / 1e4,
    ),
    (bounds.forward_kl_6_2(**given(*NO_BETA)), 16 * 3 * E**2 * math.sqrt(LOG / 1e4)),
    (bounds.forward_kl_slow(**given(*NO_BETA)), 8 * E * math.sqrt(3 * LOG / 1e4)),
    (bounds.forward_kl_versus_comparator(**given(*FULL), comparator_kl=0.3), 8 * E * math.sqrt(3 * LOG / 1e4) + 0.15),
    (bounds.forward_kl_fast(**given(*FULL), sampling_coverage=2.0), 2 * 9 * (1 + 9 * 3) * 2 * 16 * E**2 * LOG / 1e4),
]


@pytest.mark.parametrize("bound, expected", HAND_WORKED, ids=lambda x: x.statement.name if isinstance(x, bounds.Bound) else "")
def test_value_is_the_formula_worked_by_hand(bound, expected):
    assert bound.value == pytest.approx(expected, rel=1e-12)
    assert sum(bound.terms.values()) == pytest.approx(bound.value, rel=1e-12)


def test_the_two_printed_constants_follow_from_one_lemma():
    """128 = 256/2 and 16 = √256: with MSE = 256 e^{4R} R² L/n, Theorem 5.2 is (γ/2) C MSE and Theorem 6.2 is C √MSE."""
    mse = 256 * math.exp(4) * LOG / 1e4
    assert bounds.reverse_kl_5_2(**given(*FULL)).value == pytest.approx(2 / 2 * 3 * mse, rel=1e-12)
    assert bounds.forward_kl_6_2(**given(*NO_BETA)).value == pytest.approx(3 * math.sqrt(mse), rel=1e-12)


def test_stability_theorem_3_in_the_reference_toy():
    """C = 1, R = 6, σ_max = .2, σ⁺_min = .02, ε_n = 0 give Γ₁ = 24,000: 714 at 10⁴ prompts, 96 at 10⁶, 12.7 at 10⁸,
    against 3RC = 18."""
    toy = {"radius": 6, "feature_norm": 1, "sigma_max": 0.2, "sigma_min": 0.02, "sigma_min_other": 0.02}
    for samples, printed in ((1e4, 714), (1e6, 96), (1e8, 12.7)):
        bound = bounds.stability_theorem_3(samples=samples, **toy)
        assert bound.value == pytest.approx(printed, rel=6e-3)
        assert bound.trivial == 18 and bound.vacuous == (samples < 1e8)
    assert bounds.stability_theorem_2(samples=1e4, **toy).value == pytest.approx(2.4 + 12 * math.sqrt(2.4), rel=1e-12)
    threshold = bounds.stability_theorem_3(samples=1e4, **toy).solve_for("samples", target=18)
    assert 4e7 < threshold < 6e7


def test_theorems_2_and_3_term_by_term_with_a_residual():
    """n = 400, R = 2, C = 1.5, ε_n = 0.01, σ's 0.5, 0.2, 0.1, ρ = 0.1: Γ₁ = 4·400·2·0.01 + 8·2·3.375·0.5/0.02 = 32 + 1350."""
    at = {
        "samples": 400,
        "radius": 2,
        "feature_norm": 1.5,
        "sigma_max": 0.5,
        "sigma_min": 0.2,
        "sigma_min_other": 0.1,
        "residual": 0.01,
    }
    gamma = 32 + 1350
    stable = gamma / 400 + 6 * math.sqrt(gamma / 400)
    assert bounds.stability_theorem_2(**at).value == pytest.approx(stable, rel=1e-12)
    gap = bounds.stability_theorem_2_gap(**at, delta=0.1)
    assert gap.terms["stability"] == pytest.approx(stable * math.log(400) * math.log(10), rel=1e-12)
    assert gap.terms["sampling"] == pytest.approx(18 * math.sqrt(math.log(10) / 400), rel=1e-12)
    third = bounds.stability_theorem_3(**at, delta=0.1)
    assert third.terms["stability"] == pytest.approx(stable * math.log(400) * math.log(20), rel=1e-12)
    assert third.terms["sampling"] == pytest.approx(18 * math.sqrt(math.log(20) / 400), rel=1e-12)
    assert third.terms["concentration"] == pytest.approx(9 * math.sqrt(2 * math.log(40) / 400), rel=1e-12)
    assert third.value == pytest.approx(sum(third.terms.values())) and third.trivial == 9


def test_stability_statements_worked_by_hand():
    two = {"radius": 6.0, "feature_norm": 2.0}
    assert bounds.stability_lemma_1(samples=100, delta=0.1, **two).value == pytest.approx(
        36 * math.sqrt(2 * math.log(20) / 100)
    )
    corollary = bounds.stability_corollary_1(
        gradient_norm=1e-3, sigma_max=1, sigma_min=0.5, sigma_min_other=0.25, residual=1e-4, **two
    )
    q = 4 * 6 * 1e-4 + 2 * 2 * 1e-3 / 0.125
    assert corollary.value == pytest.approx(q + 24 * math.sqrt(q))
    assert bounds.stability_gradient_ascent_norm(iterations=50, smoothness=3, **two).value == pytest.approx(12 * 3 * 12 / 50)
    stochastic = bounds.stability_stochastic_ascent_norm(iterations=100, smoothness=3, mixing=0.5, delta=0.05, **two)
    noise = 2 * 36 * 16 / 3
    assert stochastic.value == pytest.approx(18 / 10 * (72 + noise + noise * math.log(100) + math.log(20) / 0.5))
    assert bounds.stability_gradient_ascent(
        samples=100, iterations=16, condition=3, residual=0.04, **two
    ).value == pytest.approx(0.2 + 3 * (0.5 + 0.1))
    assert bounds.stability_stochastic_ascent(samples=100, iterations=256, condition=3, **two).value == pytest.approx(
        3 * (0.5 + 0.1)
    )
    derived = bounds.interpolation(gradient_norm=0.1, sigma_min=0.5, feature_norm=2, distance=3, radius=6, residual=0.2)
    assert derived.value == pytest.approx(0.5 * (2 * 0.1 / 0.5 + 3 * 0.2) ** 2)
    assert bounds.interpolation_optimum(residual=0.01, **two).value == pytest.approx(8 / 9 * 36 * 1e-4)
    ascent = bounds.interpolation_gradient_ascent(iterations=1e6, sigma_min=0.5, residual=0.01, **two)
    smooth = 4 + 8 / 3 * 6 * 8
    assert ascent.value == pytest.approx(0.5 * (2 / 0.5 * math.sqrt(12 * smooth * 12 / 1e6) + 4 / 3 * 6 * 0.01) ** 2)
    mu = 0.3 * math.exp(-4) / (1 + math.exp(-4)) ** 2 / 2
    learned = {"samples": 1000, "feature_norm": 2, "radius": 1, "pair_curvature": 0.3}
    assert bounds.learned_reward_parameter(**learned).value == pytest.approx(8 / (mu * 1000))
    assert bounds.learned_reward_value(**learned, distance=0.1).value == pytest.approx(4 * 0.1 * 8 / (mu * 1000))


def test_theorem_1_inverts_to_the_printed_sample_size():
    """n > (128C⁴/σ²)(log(1/ρ) + d log(432RC⁵/σ²))."""
    bound = bounds.stability_theorem_1(samples=1e6, radius=6, feature_norm=1, dimension=24, curvature=0.1)
    printed = 128 / 0.01 * (math.log(1 / 0.05) + 24 * math.log(432 * 6 / 0.01))
    assert bound.solve_for("samples", target=0.05) == pytest.approx(printed, rel=1e-6)


@pytest.mark.parametrize(
    "bound, target, expected",
    [
        (HAND_WORKED[1][0], 0.01, 128 * 2 * 3 * E**4 * LOG / 0.01),
        (HAND_WORKED[2][0], 0.01, 8 * 2 * 3 * E**2 * LOG / 0.01),
        (HAND_WORKED[6][0], 0.01, 256 * 9 * E**4 * LOG / 1e-4),
    ],
)
def test_solving_for_samples_gives_the_sample_complexity(bound, target, expected):
    samples = bound.solve_for("samples", target=target)
    assert samples == math.ceil(expected)
    assert bound.at(samples=samples).value <= target * (1 + 1e-9) < bound.at(samples=samples - 2).value * (1 + 1e-9)


@pytest.mark.parametrize("bound", [bound for bound, _ in HAND_WORKED], ids=lambda bound: bound.statement.name)
def test_solving_for_samples_gives_back_a_whole_number(bound):
    """What n gives is reached at n and not at n + 1 only: the root is known to more digits than a number of pairs has."""
    for samples in (7.0, 1000.0, 123_457.0):
        assert bound.solve_for("samples", target=bound.at(samples=samples).value) == samples


def test_solving_for_another_quantity_reaches_the_target():
    bound = HAND_WORKED[2][0]
    for quantity, target in (("beta", 0.3), ("coverage", 0.5), ("reward_max", 1.0), ("delta", 0.3), ("class_size", 0.3)):
        assert bound.at(**{quantity: bound.solve_for(quantity, target=target)}).value == pytest.approx(target, rel=1e-9), (
            quantity
        )


def test_the_lower_bound_turns_where_the_gap_is_the_strength():
    """min(η/ε, 1/ε²) log N: at β = ε both are 1/ε². Below both stages of the method that it bounds, at their constants."""
    for beta, target, expected in ((0.001, 0.002, 1 / 0.002**2), (0.002, 0.002, 1 / 0.002**2), (0.1, 0.002, 5000.0)):
        least = bounds.two_stage_least(small_beta=beta, class_size=50, small_target=target)
        assert least.value == pytest.approx(expected * math.log(50), rel=1e-12)
        enough = bounds.two_stage(beta=beta, coverage=1, reward_max=0.1, class_size=50, target=target)
        assert least.value < enough.value
    for wrong in ({"small_beta": 0.25, "small_target": 0.001}, {"small_beta": 0.1, "small_target": 1 / 256}):
        with pytest.raises(ArgumentError, match="below"):
            bounds.two_stage_least(class_size=50, **wrong)


def test_the_moment_behind_the_average_over_policies():
    """E e^{2mD²} ≤ 2√m of D = X/m − p, X binomial, by its mass function: every p on a grid, m up to 300. Without the root it is
    exceeded (1.25 √m at p = ½ is still too much for 2)."""
    for m in (8, 30, 300):
        p = torch.linspace(0.001, 0.999, 99, dtype=torch.float64)[:, None]
        k = torch.arange(m + 1, dtype=torch.float64)
        binomial = torch.lgamma(torch.tensor(m + 1.0)) - torch.lgamma(k + 1) - torch.lgamma(m - k + 1)
        law = binomial.double() + k * p.log() + (m - k) * torch.log1p(-p)
        moment = (law + 2 * m * (k / m - p) ** 2).logsumexp(-1).exp()
        assert 2 < float(moment.max()) < 2 * math.sqrt(m)


def test_the_average_over_policies_holds_for_a_posterior_that_saw_the_rollouts():
    """Twenty policies on two completions, each with random numbers of its own; Q is all on the one that looks best beyond its
    worth (KL log 20). 400 samples of 50 prompts, δ = ½."""
    generator, policies, n, rollouts, delta = torch.Generator().manual_seed(0), 20, 50, 4, 0.5
    chance = torch.linspace(0.3, 0.7, policies).double()  # of the completion whose reward is 1: J* = chance, β = 0
    seen = torch.rand(400, n, rollouts, policies, generator=generator) < chance
    look = seen.double().mean((1, 2)) - chance
    gap = look.max(-1).values
    shift = {"beta": 1e-12, "tau": 1.0, "chi_squared": 0.0, "squared_error": 0.0, "clip_bias": 0.0, "delta": delta}
    bound = bounds.reward_shift_average(samples=n, rollouts=rollouts, posterior_kl=math.log(policies), **shift).value
    assert float((gap > bound).double().mean()) <= delta
    fixed = bounds.reward_shift(samples=n, rollouts=rollouts, **shift).value
    assert bound > fixed and bounds.reward_shift_average(samples=n, rollouts=rollouts, posterior_kl=0.0, **shift).value > fixed


def test_what_sgd_settles_to_against_two_other_ways():
    """Σ by SciPy's Lyapunov solver, KL by torch.distributions; and Σ is that of the recursion Σ = (1 − ηH) Σ (1 − ηH) + η² C/B
    as η → 0 (a thousandth off at η = 0.001)."""
    mix = torch.tensor([[1.0, 0.3], [-0.2, 0.8]]).double()
    H, C = mix @ mix.T + torch.eye(2), torch.tensor([[0.5, 0.1], [0.1, 0.3]]).double()
    theta, eta, batch, s = torch.tensor([0.4, -0.7]).double(), 0.001, 8.0, 0.6
    settled = torch.as_tensor(solve_continuous_lyapunov(H.numpy(), eta / batch * C.numpy()))
    step = torch.eye(2) - eta * H
    turned = torch.as_tensor(solve_discrete_lyapunov(step.numpy(), eta**2 / batch * C.numpy()))
    torch.testing.assert_close(settled, turned, rtol=3e-3, atol=0)
    law, prior = (MultivariateNormal(*each) for each in ((theta, settled), (0 * theta, s**2 * torch.eye(2).double())))
    found = bounds.sgd_posterior_kl(theta, H, C, learning_rate=eta, batch=batch, deviation=s)
    assert found == pytest.approx(float(kl_divergence(law, prior)), rel=1e-10)
    flat = bounds.sgd_posterior_kl(theta, H / 100, C / 100, learning_rate=eta, batch=batch, deviation=s)
    assert flat == pytest.approx(found, rel=1e-10)  # HΣ + ΣH = (η/B) C has the same Σ
    for wrong in ((-H, C), (H, torch.zeros(2, 2))):
        with pytest.raises(ArgumentError, match="positive definite"):
            bounds.sgd_posterior_kl(theta, *wrong, learning_rate=eta, batch=batch, deviation=s)


def test_a_budget_between_prompts_and_pairs_against_a_grid():
    a, b, costs = 0.7, 2.1, {"prompt_cost": 3.0, "pair_cost": 0.4}
    n, pairs = bounds.prompts_and_pairs(a, b, **costs, budget=900.0)
    assert 3 * n + 0.4 * pairs == pytest.approx(900) and n / pairs == pytest.approx((0.7 * 0.4 / (2.1 * 3)) ** (2 / 3))
    grid = torch.linspace(1, 299, 30_000, dtype=torch.float64)
    value = a / grid.sqrt() + b / ((900 - 3 * grid) / 0.4).sqrt()
    assert a / math.sqrt(n) + b / math.sqrt(pairs) <= float(value.min()) and float(grid[value.argmin()]) == pytest.approx(
        n, rel=1e-3
    )
    with pytest.raises(ArgumentError, match="pair_cost"):
        bounds.prompts_and_pairs(a, b, prompt_cost=1.0, pair_cost=0.0, budget=9.0)


def test_pessimism_is_the_most_that_a_confidence_set_may_take_off():
    """Over 100,000 parameters on the ellipse ‖θ − θ̂‖_Σ = w; the pool need not be normalised."""
    generator = torch.Generator().manual_seed(0)
    features, base = (torch.randn(*shape, generator=generator).double() for shape in ((2, 4, 2), (2, 4)))
    sigma = torch.tensor([[2.0, 0.6], [0.6, 0.5]]).double()
    angle = torch.linspace(0, 2 * math.pi, 100_001, dtype=torch.float64)
    edge = 0.3 * torch.linalg.inv(torch.linalg.cholesky(sigma)).T @ torch.stack([angle.cos(), angle.sin()])
    centred = features - torch.einsum("by,byd->bd", base.exp() / base.exp().sum(-1, keepdim=True), features)[:, None]
    found = bounds.pessimism(features, base - 3.0, sigma, width=0.3)
    torch.testing.assert_close(found, (centred @ edge).amax(-1), rtol=1e-7, atol=0)
    for wrong in (-sigma, torch.eye(3)):
        with pytest.raises(ArgumentError, match="positive definite"):
            bounds.pessimism(features, base, wrong, width=0.3)


def test_what_pessimism_gives_away_is_bounded_and_the_bound_is_reached():
    """300 random problems of five completions, solved exactly: at most (2/β) E_π*[Γ²] whatever the error within Γ and a shift a
    prompt; of one rare completion alone nearly all of it."""
    generator = torch.Generator().manual_seed(1)
    reward, base, gamma, place = (torch.rand(300, 5, generator=generator).double() for _ in range(4))
    gamma, error = 2 * gamma, 2 * gamma * (2 * place - 1) + torch.randn(300, 1, generator=generator)
    rare = torch.tensor([[0.01, 0.99]]).double()
    problems = [(reward, (3 * base).log_softmax(-1), gamma, error, 0.4)]
    problems += [(0 * rare, rare.log(), torch.tensor([[1e-3, 0.0]]).double(), torch.tensor([[-1e-3, 0.0]]).double(), 1.0)]
    for r, pool, width, off, beta in problems:
        solve = partial(exact.solve, ref_logps=pool[None], regularizer=ReverseKL([1.0]), beta=beta)
        best, made = solve(r), solve(r + off - width)
        lost = beta * (made.policy * (made.log_policy - best.log_policy)).sum(-1)
        bound = [
            bounds.pessimism_suboptimality(beta=beta, squared_width=float(x)).value for x in (best.policy * width**2).sum(-1)
        ]
        assert bool((lost <= torch.tensor(bound)).all())
    assert float(lost) > 0.98 * bound[0]


@pytest.mark.parametrize("name", list(bounds.statements()))
def test_every_statement_prints_on_one_screen_and_says_where_it_comes_from(name):
    statement = bounds.statements()[name]
    small = {"delta": 0.5, "residual": 0.5, "sigma_min": 0.5, "small_epsilon": 0.5, "small_beta": 0.1, "small_target": 0.003}
    bound = statement(**{q: small.get(q, 4.0) for q in statement.parameters})
    text = str(bound)
    assert len(text.splitlines()) <= 24 and max(map(len, text.splitlines())) <= 200
    assert name in text and bound.citation in text and bound.status in text and all(a in text for a in bound.assumptions)
    assert bound.status == "found" or "derived" in bound.citation or bound.status == "provisional"
    assert bound.vacuous == (not bound.value < bound.trivial) == ("VACUOUS" in text)


@pytest.mark.parametrize("name", [n for n, s in bounds.statements().items() if "samples" in s.parameters])
def test_every_bound_falls_with_samples(name):
    statement = bounds.statements()[name]
    at = {
        q: 0.01 if q in ("delta", "residual", "sigma_min", "sigma_min_other", "curvature") else 2.0
        for q in statement.parameters
    }
    at["residual"] = 0.0
    at = {q: at[q] for q in statement.parameters}
    values = [statement(**{**at, "samples": n}).value for n in (1e3, 1e5, 1e7, 1e9)]
    assert all(a > b for a, b in itertools.pairwise(values) if a < math.inf)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"samples": 0}, "samples"),
        ({"samples": -5}, "positive"),
        ({"delta": 0.0}, "strictly between"),
        ({"delta": 1.0}, "strictly between"),
        ({"coverage": 0.9}, "at least 1"),
        ({"reward_max": float("nan")}, "reward_max"),
        ({"beta": 0}, "beta"),
        ({"class_size": "many"}, "class_size"),
        ({"wrong": 1.0}, "unknown wrong"),
    ],
)
def test_bad_quantities_are_refused_by_name(change, words):
    with pytest.raises(ArgumentError, match=words):
        bounds.reverse_kl_suboptimality(**{**GIVEN, **change})


def test_missing_quantity_and_hopeless_targets_are_refused():
    with pytest.raises(ArgumentError, match="no coverage"):
        bounds.reverse_kl_suboptimality(**given("samples", "beta", "reward_max", "class_size"))
    bound = HAND_WORKED[2][0]
    with pytest.raises(ArgumentError, match="target"):
        bound.solve_for("samples", target=-1.0)
    with pytest.raises(ArgumentError, match="no quantity"):
        bound.solve_for("prompts", target=0.1)
    with pytest.raises(ArgumentError, match="moves the bound only"):
        bounds.reverse_kl_versus_comparator(**GIVEN, log_comparator=2.0).solve_for("samples", target=0.5)


def test_values_too_large_for_a_float_are_vacuous_not_a_crash():
    assert bounds.reverse_kl_suboptimality(**{**GIVEN, "reward_max": 1e4}).vacuous


def test_a_divisor_that_underflows_makes_a_bound_infinite_not_a_traceback():
    """σ'(2RL) below 1e-308, (e^ε − 1)² at ε = 1e-200; a search over the radius meets such points on its way."""
    learned = {"samples": 900, "feature_norm": 1.4, "pair_curvature": 0.3}
    assert bounds.learned_reward_parameter(**learned, radius=1000).value == math.inf
    assert bounds.learned_reward_value(**learned, radius=1000, distance=0.1).vacuous
    assert bounds.label_privacy_printed(small_epsilon=1e-200).value == math.inf
    assert bounds.label_privacy_inflation(epsilon=1e-200, reward_max=1).value == math.inf
    found = bounds.learned_reward_parameter(**learned, radius=0.8)
    assert found.at(radius=found.solve_for("radius", target=2.0)).value == pytest.approx(2.0, rel=1e-9)


def test_what_overflows_is_infinite_and_the_trivial_range_stays_what_it_is():
    """e^{4R} at R = 500; 2R = 1000 is below R²/(2β) = 250,000. Prints 1,000, not 0."""
    bound = bounds.reverse_kl_5_2(**{**given(*FULL), "reward_max": 500.0})
    assert bound.value == math.inf and bound.vacuous and bound.trivial == 1000 and "trivial range is 1,000" in str(bound)
