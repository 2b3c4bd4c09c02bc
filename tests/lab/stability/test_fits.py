"""Fits of almost equal data sets, influence functions, and what rates they must have:
against SciPy, finite differences and docs/theory.md 10."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from multiref_lab.stability.fit import agreement, fit, influence
from multiref_lab.stability.log_linear import gibbs, reward_model
from multiref_lab.stability.measures import distances
from multiref_lab.stability.runs import Runs
from multiref_lab.stability.sample import LinearSettings, draw
from multiref_lab.stability.transformer_cell import gauss_newton
from multiref_lab.stats import fit_slope


def data(seeds=2, rows=40, dimension=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    delta = torch.randn(seeds, rows, dimension, generator=generator, dtype=torch.float64)
    return delta, torch.randn(seeds, rows, generator=generator, dtype=torch.float64)


def test_every_run_is_the_minimum_that_scipy_finds():
    delta, offset = data()
    weight = torch.ones(2, 3, 40, dtype=torch.float64)
    weight[:, 1, 5], weight[:, 2, :7] = 0, 2.5
    found = fit(delta, weight, offset=offset, ridge=0.3)
    for s in range(2):
        for m in range(3):

            def loss(theta, s=s, m=m):
                margin = delta[s].numpy() @ theta + offset[s].numpy()
                return float((weight[s, m].numpy() * np.logaddexp(0, -margin)).sum() + 0.15 * theta @ theta)

            best = minimize(loss, np.zeros(3), method="BFGS", options={"gtol": 1e-10}).x
            np.testing.assert_allclose(found[s, m].numpy(), best, atol=1e-7)
    without = fit(
        delta[:, torch.arange(40) != 5],
        torch.ones(2, 1, 39, dtype=torch.float64),
        offset=offset[:, torch.arange(40) != 5],
        ridge=0.3,
    )
    torch.testing.assert_close(found[:, 1], without[:, 0], atol=1e-10, rtol=0)


def test_separable_data_have_the_ridge_s_optimum():
    delta = torch.ones(1, 5, 1, dtype=torch.float64)
    theta = fit(delta, torch.ones(1, 1, 5, dtype=torch.float64), ridge=0.1)[0, 0, 0]
    assert 0.1 * theta == pytest.approx(5 * torch.sigmoid(-theta).item(), rel=1e-9)  # stationarity: ridge θ = Σ σ(−θ)


def test_influence_is_the_derivative_in_a_pair_s_weight():
    """d θ / d w_i at w_i = 1 is −H⁻¹∇ℓ_i: taking the whole pair out moves θ by + H⁻¹∇ℓ_i to first order."""
    delta, offset = data()
    weight = torch.ones(2, 3, 40, dtype=torch.float64)
    step = 1e-5
    weight[:, 1, 7] += step
    weight[:, 2, 7] -= step
    theta = fit(delta, weight, offset=offset, ridge=0.3)
    slope = (theta[:, 1] - theta[:, 2]) / (2 * step)
    gone = torch.full((2, 1), 7)
    moved, leverage = influence(delta, weight[:, 0], theta[:, 0], gone, offset=offset, ridge=0.3)
    torch.testing.assert_close(moved[:, 0], -slope, rtol=1e-5, atol=1e-8)
    assert ((leverage > 0) & (leverage < 1)).all()


def test_with_leverage_it_is_one_newton_step_without_the_pair():
    delta, offset = data()
    whole = torch.ones(2, 1, 40, dtype=torch.float64)
    theta = fit(delta, whole, offset=offset, ridge=0.3)[:, 0]
    moved, leverage = influence(delta, whole[:, 0], theta, torch.full((2, 1), 11), offset=offset, ridge=0.3)
    for s in range(2):
        keep = torch.arange(40) != 11
        d, m = delta[s, keep], delta[s, keep] @ theta[s] + offset[s, keep]
        p = torch.sigmoid(-m)
        gradient = 0.3 * theta[s] - (p[:, None] * d).sum(0)
        hessian = (d * (p * (1 - p))[:, None]).T @ d + 0.3 * torch.eye(3, dtype=torch.float64)
        torch.testing.assert_close(
            moved[s, 0] / (1 - leverage[s, 0]), -torch.linalg.solve(hessian, gradient), rtol=1e-9, atol=1e-12
        )


def test_influence_agrees_with_retraining_better_as_data_grow():
    """Relative error of plain influence ∝ 1/n (its leverage is d/n), of the corrected one smaller at every n."""
    errors = []
    for samples in (100, 400, 1600):
        sample = draw(LinearSettings(samples=samples, seeds=8, dimension=4, replaced=1, left_out=6))
        theta = reward_model(sample, ridge=0.1)
        gone = sample.runs.changed[2:-1].expand(8, -1)
        moved, leverage = influence(sample.delta(), sample.runs.weights[0].expand(8, -1), theta[:, 0], gone, ridge=0.1)
        true = sample.runs.split(theta)[1] - theta[:, :1]
        plain, better = agreement(moved, true), agreement(moved / (1 - leverage).unsqueeze(-1), true)
        error, corrected = np.mean(plain["error"]), np.mean(better["error"])
        assert min(plain["correlation"]) > 0.99 and corrected < error
        assert np.mean(plain["slope"]) > 1  # plain influence is too small
        errors.append(error)
    assert fit_slope((100, 400, 1600), torch.tensor([errors]).expand(20, -1), decade=20).value == pytest.approx(-1, abs=0.25)


def test_gauss_newton_is_solved_in_the_pairs_as_in_the_parameters():
    generator = torch.Generator().manual_seed(4)
    jacobian, across = (torch.randn(n, 30, generator=generator, dtype=torch.float64) for n in (12, 5))
    m = torch.randn(12, generator=generator, dtype=torch.float64)
    p = torch.sigmoid(-m)
    curvature = (jacobian * (p * (1 - p))[:, None]).T @ jacobian + 0.7 * torch.eye(30, dtype=torch.float64)
    direct = -(across @ torch.linalg.solve(curvature, jacobian.T)) * p
    torch.testing.assert_close(gauss_newton(jacobian, across, m, 0.7), direct, rtol=1e-9, atol=1e-12)


def test_agreement_by_hand():
    """True = 2 × predicted: correlation 1, slope 2, error |2p − p|/|2p| = ½; the sign turned: −1, −2, 3/2."""
    p = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    same, turned = agreement(p, 2 * p), agreement(p, -2 * p)
    assert [same[name][0] for name in ("correlation", "slope", "error")] == pytest.approx([1, 2, 0.5])
    assert [turned[name][0] for name in ("correlation", "slope", "error")] == pytest.approx([-1, -2, 1.5])


@pytest.mark.parametrize("noise, curved, value", [(0.0, 0.0, -1.5), (0.2, 0.0, -1.0), (0.0, 0.5, -1.0)])
def test_rates_of_theory_5_6_and_what_a_wrong_model_does_to_them(noise, curved, value):
    """Parameter and total variation −1, KL −2. Value −3/2 where the class is right (∇f vanishes at the truth);
    with flipped labels or a reward outside the
    class θ̂ stays away from the optimum, ∇f does not vanish there, and the value moves like the parameter: −1 (DERIVED)."""
    sizes = (400, 1300, 4000)
    columns: dict[str, list[list[float]]] = {name: [] for name in ("parameter", "value", "tv", "kl")}
    for samples in sizes:
        sample = draw(
            LinearSettings(samples=samples, seeds=40, dimension=4, replaced=4, left_out=0, noise=noise, curved=curved)
        )
        policy = gibbs(reward_model(sample, ridge=0.1), 1, beta=0.5)
        found = distances(policy.log_policy(sample.fresh), policy.parameter, sample, 1, beta=0.5)
        for name, parts in columns.items():
            parts.append(found[f"replace/{name}"])
    expected = {"parameter": -1.0, "value": value, "tv": -1.0, "kl": -2.0}
    for name, parts in columns.items():
        slope = fit_slope(sizes, torch.tensor(parts, dtype=torch.float64).T)
        assert slope.value == pytest.approx(expected[name], abs=0.15 if name != "kl" else 0.3), name


def test_runs_say_who_trains_on_what():
    runs = Runs(10, 2, 1)
    assert runs.rows == 12 and runs.count == 5
    expected = torch.ones(5, 12, dtype=torch.float64)
    expected[:, 10:] = 0
    expected[1, 0], expected[1, 10], expected[2, 1], expected[2, 11], expected[3, 2] = 0, 1, 0, 1, 0
    assert torch.equal(runs.weights, expected)
    drawn, second = torch.tensor([[[0, 1, 2, 5, 2]]]), torch.tensor([[[7, 7, 7, 7, 2]]])
    assert runs.rows_of(drawn, second)[0].tolist() == [
        [0, 1, 2, 5, 2],
        [10, 1, 2, 5, 2],
        [0, 11, 2, 5, 2],
        [0, 1, 7, 5, 3],
        [0, 1, 2, 5, 2],
    ]
