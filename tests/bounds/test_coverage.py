"""Coverage constants against brute force, and the inequality between the price of sampling and 1/F."""

import math

import mpmath
import pytest
import torch

from multiref import bounds
from multiref.divergences import disagreement, kl
from multiref.errors import ArgumentError


def random_logps(*shape, seed, spread=1.5):
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(*shape, generator=generator, dtype=torch.float64)).log_softmax(-1)


def test_what_has_little_mass_counts():
    """A completion of log-probability −800 that is e^10 times as likely under the policy."""
    policy = torch.tensor([0.0, -800.0, -math.inf], dtype=torch.float64)
    sampling = torch.tensor([-1e-9, -810.0, -math.inf], dtype=torch.float64)
    assert float(bounds.coverage(policy, sampling)) == pytest.approx(math.exp(10))


def test_path_coverage_is_the_maximum_over_a_fine_path():
    generator = torch.Generator().manual_seed(0)
    pool, sampling = random_logps(5, 7, seed=1), random_logps(5, 7, seed=2)
    reward = torch.rand(5, 7, generator=generator, dtype=torch.float64)
    estimate = torch.rand(5, 7, generator=generator, dtype=torch.float64)
    exact = bounds.path_coverage(reward, estimate, pool, sampling, beta=0.2)
    s = torch.linspace(0, 1, 4001, dtype=torch.float64)[:, None, None]
    path = (pool + (reward + s * (estimate - reward)) / 0.2).log_softmax(-1)
    brute = (path - sampling).amax((0, -1)).exp()
    torch.testing.assert_close(exact, brute, rtol=1e-5, atol=0)
    assert (exact >= brute * (1 - 1e-12)).all()


def test_path_coverage_without_error_is_the_optimum_s_own():
    pool, sampling = random_logps(4, 6, seed=3), random_logps(4, 6, seed=4)
    reward = torch.rand(4, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    optimum = (pool + reward / 0.3).log_softmax(-1)
    torch.testing.assert_close(
        bounds.path_coverage(reward, reward, pool, sampling, beta=0.3), bounds.coverage(optimum, sampling), rtol=1e-12, atol=0
    )


def test_a_law_that_misses_a_completion_covers_nothing_and_padding_does_not_count():
    policy = torch.tensor([0.5, 0.5, 0.0]).log()
    assert bounds.coverage(policy, torch.tensor([1.0, 0.0, 0.0]).log()) == math.inf
    assert bounds.coverage(policy, torch.tensor([0.25, 0.75, 0.0]).log()).item() == pytest.approx(2.0)
    reward = torch.tensor([0.2, 0.4, -torch.inf], dtype=torch.float64)
    padded = bounds.path_coverage(
        reward, reward + 0.1, policy.double(), torch.tensor([0.25, 0.75, 0.0]).double().log(), beta=1.0
    )
    short = bounds.path_coverage(
        reward[:2], reward[:2] + 0.1, policy[:2].double(), torch.tensor([0.25, 0.75]).double().log(), beta=1.0
    )
    torch.testing.assert_close(padded, short)


def test_a_reward_of_minus_infinity_takes_a_completion_out_of_the_path():
    """Whatever the pool gives it; in one of the two rewards alone it is refused."""
    pool, law = torch.tensor([[0.5, 0.2, 0.3], [0.25, 0.35, 0.4]], dtype=torch.float64).log()
    reward, estimate = torch.tensor([[0.2, 0.4, -math.inf], [0.5, 0.1, -math.inf]], dtype=torch.float64)
    found = bounds.path_coverage(reward, estimate, pool, law, beta=0.3)
    torch.testing.assert_close(found, bounds.path_coverage(reward[:2], estimate[:2], pool[:2], law[:2], beta=0.3))
    for one, other in (
        (reward, estimate.nan_to_num(neginf=0.0)),
        (reward.nan_to_num(neginf=0.0), estimate),
        (-reward, estimate),
    ):
        with pytest.raises(ArgumentError, match="out of play"):
            bounds.path_coverage(one, other, pool, law, beta=0.3)


@pytest.mark.parametrize("radius", [1e-20, 1e-12, 1e-4, 0.3])
@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_ball_coverage_against_forty_digits(direction, radius):
    """The root of kl(q‖p) = ρ (or kl(p‖q)) above p, for a rare completion and a common one; a ball of radius 0 is a point."""
    for p in (0.3, 1e-9, 1e-30):
        pool = torch.tensor([math.log(p), math.log1p(-p)], dtype=torch.float64)

        def excess(gain, p=p):
            q = p * mpmath.exp(gain)
            a, b = (q, mpmath.mpf(p)) if direction == "reverse" else (mpmath.mpf(p), q)
            return a * mpmath.log(a / b) + (1 - a) * mpmath.log((1 - a) / (1 - b)) - radius

        with mpmath.workdps(60):
            low, high = mpmath.mpf(10) ** -20, -mpmath.log(mpmath.mpf(p)) * (1 - mpmath.mpf(10) ** -30)
            for _ in range(150):
                middle = (low + high) / 2
                low, high = (middle, high) if excess(middle) < 0 else (low, middle)
            expected = float(mpmath.exp(low))
        assert bounds.ball_coverage(pool, radius, direction=direction).item() == pytest.approx(expected, rel=1e-12), p
        assert bounds.ball_coverage(pool, 0.0, direction=direction).item() == pytest.approx(1.0, abs=1e-14)


@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_ball_coverage_is_attained_and_never_exceeded(direction):
    """10⁵ random policies: none inside the ball exceeds C; and the two-outcome worst case lies on the ball's edge."""
    pool, radius = random_logps(5, seed=6), 0.3
    c = bounds.ball_coverage(pool, radius, direction=direction).item()
    generator = torch.Generator().manual_seed(7)
    scale = 3 * torch.rand(100_000, 1, generator=generator, dtype=torch.float64)
    policies = (pool + scale * torch.randn(100_000, 5, generator=generator, dtype=torch.float64)).log_softmax(-1)
    distance = kl(policies, pool) if direction == "reverse" else kl(pool.expand_as(policies), policies)
    ratio = (policies - pool).amax(-1).exp()
    assert (ratio[distance <= radius] <= c * (1 + 1e-9)).all()
    worst = int((pool.exp()).argmin())
    p, q = pool.exp()[worst], c * pool.exp()[worst]
    edge = pool + torch.log((1 - q) / (1 - p))
    edge[worst] = q.log()
    reached = kl(edge, pool) if direction == "reverse" else kl(pool, edge)
    assert reached.item() == pytest.approx(radius, rel=1e-6)
    assert bounds.ball_coverage(pool, 0.0, direction=direction).item() == pytest.approx(1.0, abs=1e-6)


def test_sampling_from_the_references_costs_at_most_one_over_f():
    refs = random_logps(3, 200, 9, seed=8)
    weights = (0.5, 0.3, 0.2)
    price, inverse_f = bounds.sampling_coverage(refs, weights), disagreement(refs, weights).exp()
    assert (price <= inverse_f * (1 + 1e-12)).all() and (price >= 1 - 1e-12).all()
    assert (
        price / inverse_f
    ).max() > 0.9  # the inequality is not idle: nearly attained where the references agree on one completion
    same = refs[:1].expand(3, 200, 9)
    torch.testing.assert_close(bounds.sampling_coverage(same, weights), torch.ones(200, dtype=torch.float64))
    apart = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64).log()
    assert bounds.sampling_coverage(apart) == math.inf == disagreement(apart).exp()
    far = torch.tensor([[0.0, -2000.0], [-2000.0, 0.0]], dtype=torch.float64)  # the escort is even, and so is the mixture
    assert bounds.sampling_coverage(far).item() == pytest.approx(1.0)


def test_estimates_from_scores_recover_the_exact_disagreement():
    refs = random_logps(2, 50, seed=9)
    weights = (0.7, 0.3)
    mixture = (torch.tensor(weights, dtype=torch.float64)[:, None] * refs.exp()).sum(0)
    drawn = torch.multinomial(mixture, 40_000, replacement=True, generator=torch.Generator().manual_seed(10))
    estimate = bounds.coverage_from_scores(refs[:, drawn], weights)
    exact = disagreement(refs, weights).item()
    assert abs(estimate.disagreement - exact) < 4 * estimate.disagreement_error and estimate.disagreement_error < 0.01
    assert estimate.coverage_at_least <= bounds.sampling_coverage(refs, weights).item() * 1.02
    assert estimate.coverage_at_least == pytest.approx(bounds.sampling_coverage(refs, weights).item(), rel=0.02)
    pool = (torch.tensor(weights, dtype=torch.float64)[:, None] * refs).sum(0).exp()
    share = float(pool.sum() ** 2 / (pool**2 / mixture).sum())  # (E ρ)²/E ρ², ρ the pool over the mixture
    assert estimate.effective_samples == pytest.approx(40_000 * share, rel=0.01)
    assert "nats a completion" in str(estimate)
    agree = bounds.coverage_from_scores(refs[:1, drawn].expand(2, -1), weights)
    assert agree.disagreement == pytest.approx(0, abs=1e-12) and agree.effective_samples == pytest.approx(40_000)


def test_estimates_from_two_scores_by_hand():
    """Probabilities 0.2, 0.2 and 0.1, 0.4 at equal weights: ratios 1 and √0.04/0.25 = 0.8, mean 0.9, deviation 0.2/√2."""
    found = bounds.coverage_from_scores(torch.tensor([[0.2, 0.1], [0.2, 0.4]], dtype=torch.float64).log())
    assert found.disagreement == pytest.approx(-math.log(0.9)) and found.disagreement_error == pytest.approx(0.1 / 0.9)
    assert found.coverage_at_least == pytest.approx(1 / 0.9) and found.effective_samples == pytest.approx(1.8**2 / 1.64)


def test_refusals():
    with pytest.raises(ArgumentError, match=r"\[K, N\]"):
        bounds.coverage_from_scores(torch.zeros(2, 0))
    nobody = torch.tensor([[-1.0, -math.inf], [-math.inf, -math.inf]])
    with pytest.raises(ArgumentError, match="completion 1 has no mass under any"):
        bounds.coverage_from_scores(nobody)
    vetoed = bounds.coverage_from_scores(nobody[:, :1])
    assert vetoed.disagreement == math.inf == vetoed.disagreement_error and vetoed.effective_samples == 0
    with pytest.raises(ArgumentError, match="subtract"):
        bounds.check_reward_range(torch.tensor([-0.5, 0.2, -torch.inf]), 1.0)
    with pytest.raises(ArgumentError, match="radius"):
        bounds.ball_coverage(torch.zeros(3), -1.0)
    with pytest.raises(ArgumentError, match="direction"):
        bounds.ball_coverage(torch.zeros(3), 1.0, direction="backward")
    for nothing in (torch.full((2, 3), -math.inf), torch.tensor([-1.0, math.nan, -1.0])):
        with pytest.raises(ArgumentError, match="pool_logps: found NaN or a row without mass"):
            bounds.ball_coverage(nothing, 0.1)
    reward, law = torch.tensor([0.0, 1.0, 0.5]), torch.full((3,), 1 / 3).log()
    pool = torch.tensor([-1.0, math.nan, -1.0])  # is not taken for a completion that is out of play
    assert bounds.path_coverage(reward, reward, pool, law, beta=1.0).isnan()
    bounds.check_reward_range(torch.tensor([0.0, 1.0, -torch.inf]), 1.0)
