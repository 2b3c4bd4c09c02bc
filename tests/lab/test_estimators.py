"""Maximum likelihood against SciPy and brute force, and its refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from multiref.errors import ArgumentError
from multiref_lab.estimators import finite_class_mle, logistic_mle
from multiref_lab.preferences import PairCounts, sample_pairs
from multiref_lab.problems import linear_bandits, random_bandits, random_class, refined_class


def test_finite_class_is_the_argmax_of_the_likelihood_pair_by_pair():
    generator = torch.Generator().manual_seed(0)
    problem = random_bandits(6, prompts=2, completions=4, generator=generator)
    candidates = random_class(problem.reward, 50, generator=generator)
    counts = sample_pairs(problem.reward, problem.law("uniform"), 60, generator=generator)
    chosen = finite_class_mle(candidates, counts)
    for s in range(6):
        scores = []
        for r in candidates[s].numpy():
            d = r[:, counts.first.numpy()] - r[:, counts.second.numpy()]
            p = 1 / (1 + np.exp(-d))
            scores.append((counts.wins[s].numpy() * np.log(p) + counts.losses[s].numpy() * np.log(1 - p)).sum())
        assert int(chosen[s]) == int(np.argmax(scores))


def test_a_shared_class_gives_the_same_answers_as_one_class_each():
    generator = torch.Generator().manual_seed(1)
    problem = random_bandits(1, completions=5, generator=generator)
    reward = problem.reward.expand(40, -1, -1)
    shared = random_class(problem.reward, 30, generator=generator)[0]
    counts = sample_pairs(reward, torch.zeros_like(reward).log_softmax(-1), 50, generator=generator)
    torch.testing.assert_close(finite_class_mle(shared, counts), finite_class_mle(shared.expand(40, -1, -1, -1), counts))


@pytest.mark.parametrize("kept", [1.0, 0.73], ids=["plain", "private"])
def test_logistic_fit_is_scipy_s(kept):
    """Of plain labels, and of flipped ones by the likelihood of a label that was kept with this chance."""
    generator = torch.Generator().manual_seed(2)
    problem = linear_bandits(4, prompts=3, completions=5, dimension=4, reward_scale=1.5, generator=generator)
    counts = sample_pairs(problem.reward, problem.law("mixture"), 400 if kept == 1 else 20_000, generator=generator)
    flips = [torch.binomial(n, torch.full_like(n, 1 - kept), generator=generator) for n in (counts.wins, counts.losses)]
    counts = replace(counts, wins=counts.wins - flips[0] + flips[1], losses=counts.losses - flips[1] + flips[0])
    fit = logistic_mle(problem.features, counts, kept=kept)
    assert fit.converged.all()
    for s in range(4):
        features = problem.features[s].numpy()
        delta = (features[:, counts.first] - features[:, counts.second]).reshape(-1, 4)
        wins, losses = counts.wins[s].numpy().reshape(-1), counts.losses[s].numpy().reshape(-1)

        def loss(theta, delta=delta, wins=wins, losses=losses):
            p = 1 / (1 + np.exp(-(delta @ theta)))
            seen = kept * p + (1 - kept) * (1 - p)
            return -(wins * np.log(seen) + losses * np.log(1 - seen)).sum()

        reference = minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-9})
        np.testing.assert_allclose(fit.theta[s].numpy(), reference.x, atol=2e-5)
        assert loss(fit.theta[s].numpy()) <= reference.fun + 1e-9


def test_features_shared_by_all_seeds_and_ridge():
    generator = torch.Generator().manual_seed(3)
    problem = linear_bandits(3, features=torch.randn(2, 4, 3, generator=generator, dtype=torch.float64), generator=generator)
    counts = sample_pairs(problem.reward, problem.law("uniform"), 300, generator=generator)
    each, shared = logistic_mle(problem.features, counts), logistic_mle(problem.features[0], counts)
    torch.testing.assert_close(each.theta, shared.theta, atol=1e-9, rtol=0)
    pulled = logistic_mle(problem.features, counts, ridge=50.0)
    assert (pulled.theta.norm(dim=-1) < each.theta.norm(dim=-1)).all()
    p = torch.sigmoid(
        torch.einsum("sxpd,sd->sxp", problem.features[:, :, counts.first] - problem.features[:, :, counts.second], pulled.theta)
    )
    residual = torch.einsum(
        "sxp,sxpd->sd",
        counts.wins - (counts.wins + counts.losses) * p,
        problem.features[:, :, counts.first] - problem.features[:, :, counts.second],
    )
    torch.testing.assert_close(residual, 50 * pulled.theta, atol=1e-8, rtol=1e-8)


def test_separable_data_has_no_maximum_and_says_so():
    features = torch.tensor([[[0.0], [1.0]]], dtype=torch.float64)
    counts = PairCounts(
        torch.tensor([0]),
        torch.tensor([1]),
        torch.tensor([[[0.0]], [[3.0]]]).double(),
        torch.tensor([[[9.0]], [[6.0]]]).double(),
    )
    fit = logistic_mle(features, counts)
    assert fit.converged.tolist() == [False, True]
    assert fit.theta[1].item() == pytest.approx(np.log(2), abs=1e-10)


def test_features_that_do_not_span_are_refused():
    generator = torch.Generator().manual_seed(4)
    features = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    features[..., 2] = 1.0  # the same for every completion: its coefficient is not identified
    problem = linear_bandits(3, features=features, generator=generator)
    counts = sample_pairs(problem.reward, problem.law("uniform"), 300, generator=generator)
    with pytest.raises(ArgumentError, match="rank 2, expected 3"):
        logistic_mle(problem.features, counts)
    assert logistic_mle(problem.features, counts, ridge=1e-6).theta[:, 2].abs().max() < 1e-9
    with pytest.raises(ArgumentError, match="shape"):
        linear_bandits(3, features=torch.zeros(5, 4, 3, 2), generator=generator)


def test_a_refined_class_stays_at_its_distance_and_in_range():
    generator = torch.Generator().manual_seed(5)
    problem = random_bandits(4, completions=6, generator=generator)
    near, far = (refined_class(problem.reward, 400, h, generator=generator) for h in (0.01, 0.1))
    assert (near[:, 0] == problem.reward).all() and near.min() >= 0 and near.max() <= 1
    ratio = (far[:, 1:] - problem.reward[:, None]).abs().mean() / (near[:, 1:] - problem.reward[:, None]).abs().mean()
    assert 5 < ratio < 10.5  # ten, less what the edges of [0, 1] cut off
