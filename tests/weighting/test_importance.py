"""Samples of K policies, re-weighted, are samples of the exact merge."""

import pytest
import torch

import multiref as mr
from multiref.errors import EmptyPoolError
from multiref.weighting import importance_weights


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.2, 0.8), (1.0, 0.0)])
def test_reweighted_samples_are_distributed_as_the_exact_merge(weights):
    """20,000 samples of each of two tables of 12: every probability within 5 binomial errors (at the effective sample size) of
    `exact.merge`."""
    generator = torch.Generator().manual_seed(0)
    tables = torch.randn(2, 12, generator=generator, dtype=torch.float64).log_softmax(-1)
    drawn = torch.cat([torch.multinomial(t.exp(), 20_000, replacement=True, generator=generator) for t in tables])
    u, ess = importance_weights(tables[:, drawn][:, None], torch.tensor(weights, dtype=torch.float64))
    found = torch.zeros(12, dtype=torch.float64).index_add(0, drawn, u[0])
    expected = mr.exact.merge(tables, weights).exp()
    error = (expected * (1 - expected) / ess[0]).sqrt()
    assert bool(((found - expected).abs() < 5 * error).all())
    assert float(ess[0]) > 10_000


def test_equal_policies_need_no_weights_and_a_vertex_never_exceeds_k():
    """π_1 = π_2: every u is 1/n, ESS = n. At a vertex π_1/q ≤ K, so the ESS is at least n/K² whatever the other policy is."""
    logps = torch.randn(1, 3, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u, ess = importance_weights(logps.expand(2, -1, -1), torch.tensor([0.3, 0.7], dtype=torch.float64))
    torch.testing.assert_close(u, torch.full_like(u, 1 / 50))
    torch.testing.assert_close(ess, torch.full_like(ess, 50.0))


def test_samples_without_mass_are_no_weights():
    logps = torch.zeros(2, 3, 4, dtype=torch.float64)
    logps[0, 1, :2], logps[1, 1, 2:] = -torch.inf, -torch.inf
    with pytest.raises(EmptyPoolError, match="prompt 2: no sample has mass"):
        importance_weights(logps, torch.tensor([0.5, 0.5], dtype=torch.float64))
