"""The worlds: enumeration against brute force, the stability world against finite differences and long gradient ascent."""

import itertools

import torch

from multiref.training.online import sequence_logps
from multiref_lab.problems import accumulate, bilinear_games, known_reward, linear_bandits, random_language
from multiref_lab.statements.stability_figures import missing_mass, zipf_draws


def test_language_completions_are_products_along_the_tree():
    levels = random_language(3, 3, 2, generator=torch.Generator().manual_seed(0))
    logps = sequence_logps(levels)
    assert logps.shape == (2, 27)
    torch.testing.assert_close(logps.exp().sum(-1), torch.ones(2, dtype=torch.float64))
    for i, (a, b, c) in enumerate(itertools.product(range(3), repeat=3)):
        expected = levels[0][:, 0, a] + levels[1][:, a, b] + levels[2][:, 3 * a + b, c]
        torch.testing.assert_close(logps[:, i], expected)
    along = accumulate([level.sum(-1) for level in levels], 3)
    expected = levels[0][:, 0].sum(-1) + levels[1][:, 1].sum(-1) + levels[2][:, 5].sum(-1)
    torch.testing.assert_close(along[:, 1 * 9 + 2 * 3 + 0], expected)


def test_gradient_of_the_empirical_value_is_v_times_the_error():
    """∇J_S(θ) = V_S(θ)(θ* − θ), against autograd through the value."""
    problem = known_reward(3, prompts=5, actions=4, dimension=6, generator=torch.Generator().manual_seed(1))
    counts = torch.tensor([1.0, 0, 2, 0, 1]).double().expand(3, 5)
    theta = (0.3 * torch.randn(3, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)).requires_grad_(True)
    objective = (counts / 4 * problem.value(theta)).sum()
    (gradient,) = torch.autograd.grad(objective, theta)
    formula = torch.einsum("sde,se->sd", problem.covariance(theta.detach(), counts), problem.theta - theta.detach())
    torch.testing.assert_close(gradient, formula, atol=1e-12, rtol=1e-9)


def test_regret_is_the_difference_of_values_and_the_empirical_optimum_is_where_ascent_ends():
    problem = known_reward(5, prompts=8, actions=4, dimension=9, generator=torch.Generator().manual_seed(3))
    counts = (torch.arange(8) < 2).double().expand(5, 8)
    optimum = problem.empirical_optimum(counts)
    torch.testing.assert_close(
        problem.regret(optimum), problem.value(problem.theta) - problem.value(optimum), atol=1e-12, rtol=0
    )
    assert (problem.regret(optimum)[:, :2].amax() < 1e-20) and (problem.regret(optimum)[:, 2:].mean(-1) > 1e-5).all()
    (end,) = problem.ascend(counts, [6000], curvature=0.25)
    torch.testing.assert_close(end, optimum, atol=1e-5, rtol=0)


def test_ascent_goes_on_from_mark_to_mark_and_prompts_are_drawn_alike():
    """Three steps and then four are seven; of 60,000 draws each of 8 prompts has an eighth, to four standard errors."""
    problem = known_reward(2, prompts=8, actions=4, dimension=5, generator=torch.Generator().manual_seed(6))
    counts = problem.first_prompts(3)
    assert counts.tolist() == [[1.0] * 3 + [0.0] * 5] * 2
    (_, seventh), (alone,) = (list(problem.ascend(counts, marks)) for marks in ([3, 7], [7]))
    torch.testing.assert_close(seventh, alone, atol=1e-15, rtol=0)
    drawn = problem.draw_prompts(60_000, generator=torch.Generator().manual_seed(7))
    assert (drawn.sum(-1) == 60_000).all() and bool(((drawn / 60_000 - 1 / 8).abs() < 4 * (7 / 64 / 60_000) ** 0.5).all())


def test_worlds_have_the_sizes_that_they_state():
    """Features of norm ½ to 1 (mean ¾) and ‖θ*‖ = 2 where the reward is known; else features of mean square 1/d a direction
    and θ of norm s√d, so that rewards have deviation s; bilinear games: unit features, Θ's entries of deviation 4."""
    generator = torch.Generator().manual_seed(8)
    known = known_reward(50, prompts=20, actions=5, dimension=6, generator=generator)
    norms = known.features.norm(dim=-1)
    assert 0.5 <= norms.min() < 0.51 and 0.99 < norms.max() <= 1 and abs(float(norms.mean()) - 0.75) < 0.01
    torch.testing.assert_close(known.theta.norm(dim=-1), torch.full((50,), 2.0).double())
    linear = linear_bandits(400, dimension=7, reward_scale=1.7, generator=generator)
    torch.testing.assert_close(linear.theta.norm(dim=-1), torch.full((400,), 1.7 * 7**0.5).double())
    assert abs(float(linear.features.square().mean()) * 7 - 1) < 0.03 and abs(float(linear.reward.std()) / 1.7 - 1) < 0.03
    games = bilinear_games(4000, generator=generator)
    assert games.features.shape == (4000, 8, 4) and games.ref_logps.shape == (2, 4000, 8)
    torch.testing.assert_close(games.features.norm(dim=-1), torch.ones(4000, 8).double())
    assert games.theta.shape == (4000, 6) and abs(float(games.theta.std()) / 4 - 1) < 0.02
    odds = torch.einsum("syd,sde,sze->syz", games.features, games.skew(games.theta), games.features)
    torch.testing.assert_close(games.preference, torch.sigmoid(odds))
    torch.testing.assert_close(games.preference + games.preference.mT, torch.ones(4000, 8, 8).double())


def test_zipf_draws_follow_the_law_and_missing_mass_counts_what_is_unseen():
    draws = zipf_draws(2.0, 1, 200_000, generator=torch.Generator().manual_seed(4))
    for j in (1, 2, 3, 10):
        expected = j**-2 / (torch.pi**2 / 6)
        assert abs((draws == j).double().mean().item() - expected) < 4 * (expected / 200_000) ** 0.5
    seen = torch.tensor([[1.0, 3.0, 1.0, 2.0, 3.0]], dtype=torch.float64)
    torch.testing.assert_close(missing_mass(seen, 2.0), torch.tensor([1 - (1 + 1 / 4 + 1 / 9) / (torch.pi**2 / 6)]).double())
