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


def test_weights_of_each_prompt():
    """[K, B] weighs each prompt by its own column; for one prompt, [K, 1], every policy's own samples came back."""
    logps = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64).log_softmax(-1)
    weights = torch.tensor([[0.3, 1.0, 0.5], [0.7, 0.0, 0.5]], dtype=torch.float64)
    for prompts in ([0], [0, 1, 2]):
        u, ess = importance_weights(logps[:, prompts], weights[:, prompts])
        for row, prompt in enumerate(prompts):
            single = importance_weights(logps[:, prompt : prompt + 1], weights[:, prompt])
            torch.testing.assert_close((u[row], ess[row]), (single[0][0], single[1][0]))


def test_samples_without_mass_are_no_weights():
    logps = torch.zeros(2, 3, 4, dtype=torch.float64)
    logps[0, 1, :2], logps[1, 1, 2:] = -torch.inf, -torch.inf
    with pytest.raises(EmptyPoolError, match="prompt 2: no sample has mass"):
        importance_weights(logps, torch.tensor([0.5, 0.5], dtype=torch.float64))
