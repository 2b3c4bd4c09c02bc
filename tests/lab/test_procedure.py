"""What acting on an estimate loses: the same number by the definition of the objective."""

import pytest
import torch

from multiref import exact
from multiref.regularizers import AlphaDivergence, ForwardKL, ReverseKL
from multiref_lab import plug_in
from multiref_lab.problems import linear_bandits, random_bandits
from multiref_lab.procedure import learning_curve, linear_fit


@pytest.mark.parametrize(
    "regularizer", [ReverseKL((0.7, 0.3)), ForwardKL((0.7, 0.3)), AlphaDivergence((0.7, 0.3), alpha=2)], ids=lambda r: r.name
)
def test_loss_is_the_difference_of_values_and_zero_at_the_truth(regularizer):
    generator = torch.Generator().manual_seed(0)
    problem = random_bandits(20, prompts=3, completions=5, weights=(0.7, 0.3), generator=generator)
    estimate = problem.reward + 0.5 * torch.randn(problem.reward.shape, generator=generator, dtype=torch.float64)
    loss = plug_in(problem, estimate, regularizer, beta=0.3)
    best = exact.solve(problem.reward, problem.ref_logps, regularizer, beta=0.3)
    value = exact.value(loss.log_policy, problem.reward, problem.ref_logps, regularizer, beta=0.3)
    torch.testing.assert_close(loss.regularised, (best.value - value).mean(-1), atol=1e-12, rtol=1e-9)
    assert (loss.regularised > 1e-6).all()
    plain = ((best.policy * problem.reward).sum((-1, -2)) - (loss.log_policy.exp() * problem.reward).sum((-1, -2))) / 3
    torch.testing.assert_close(loss.plain, plain.abs())
    nothing = plug_in(problem, problem.reward + 7.0, regularizer, beta=0.3)  # a constant per prompt is not an error
    assert nothing.regularised.abs().max() < 1e-12 and nothing.plain.max() < 1e-12


def test_reverse_kl_loss_follows_its_asymptotic_constant():
    """n × loss → (γ/2) tr(Cov_π*[φ] I⁻¹), I the Fisher information per pair:
    the slope −1 with its constant, not only its exponent.
    """
    generator = torch.Generator().manual_seed(1)
    problem = linear_bandits(2000, prompts=1, completions=4, dimension=2, generator=generator)
    problem = type(problem)(
        *(x[:1].expand(2000, *x.shape[1:]) for x in (problem.reward,)),
        problem.ref_logps[:, :1].expand(-1, 2000, -1, -1),
        problem.weights,
        problem.features[:1].expand(2000, -1, -1, -1),
        problem.theta[:1].expand(2000, -1),
    )
    n, beta = 20_000, 0.5
    losses = learning_curve(
        problem, [n], linear_fit(problem), ReverseKL(), beta=beta, law="escort", generator=generator
    ).regularised
    policy = exact.solve(problem.reward[:1], problem.ref_logps[:, :1], ReverseKL(), beta=beta).policy[0, 0]
    law, features, reward = problem.law("escort")[0, 0].exp(), problem.features[0, 0], problem.reward[0, 0]
    difference = features[:, None] - features[None, :]
    p = torch.sigmoid(reward[:, None] - reward[None, :])
    fisher = torch.einsum("ij,ijd,ije->de", law[:, None] * law[None, :] * p * (1 - p), difference, difference)
    centred = features - policy @ features
    covariance = torch.einsum("y,yd,ye->de", policy, centred, centred)
    predicted = torch.trace(covariance @ torch.linalg.inv(fisher)) / (2 * beta)
    assert n * losses.mean() == pytest.approx(float(predicted), rel=0.1)
