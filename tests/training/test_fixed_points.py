"""Trained on a table under known preferences, each objective settles where theory says it does."""

import pytest

import multiref as mr
from tests.training.world import random_world, train_to_the_end

BETA = 0.5
CASES = [
    (mr.ReverseKL((0.3, 0.7)), 2),
    (mr.ReverseKL((0.2, 0.5, 0.3)), 3),
    (mr.ForwardKL((0.3, 0.7)), 2),
    (mr.ForwardKL((0.2, 0.5, 0.3)), 3),
    (mr.AlphaDivergence((0.3, 0.7), alpha=0.5), 2),
    (mr.AlphaDivergence((0.2, 0.5, 0.3), alpha=0.5), 3),
]


@pytest.mark.parametrize(("regularizer", "k"), CASES, ids=str)
def test_population_preferences_end_at_the_optimum_that_the_regularizer_claims(regularizer, k, tmp_path):
    """With P(y ≻ y') = σ(r(y) − r(y')) the loss is least where implicit margins equal reward margins, that is at π* of `exact.solve`."""
    world = random_world(k, seed=k)
    optimum = mr.exact.solve(world.reward, world.ref_logps, regularizer, beta=BETA).log_policy
    policy = train_to_the_end(world, regularizer, tmp_path, beta=BETA, steps=200)
    assert world.kl_to(world.policy(), optimum) > 0.05
    assert world.kl_to(policy, optimum) < 1e-4
