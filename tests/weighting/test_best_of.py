"""The exact law of soft best-of-n against enumeration of all n draws."""

import math

import pytest
import torch

from multiref.errors import ArgumentError
from multiref.weighting import best_of_law


def enumerated(q, w, n):
    """Σ over all (y_1, …, y_n) of ∏ q(y_i) · w(y_1) n / Σ_i w(y_i)."""
    chance, total = q, w
    for _ in range(n - 1):
        chance, total = (chance[..., None] * q), (total[..., None] + w)
    shape = [-1, *[1] * (n - 1)]
    picked = torch.where(total > 0, n * chance * w.view(shape) / total.clamp_min(1e-300), 0.0)
    law = picked.flatten(1).sum(1) if n > 1 else picked
    return law / law.sum()


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_against_all_ways_to_draw(n):
    """Weights that differ by e^15, one draw that weighs nothing and one that is never drawn."""
    generator = torch.Generator().manual_seed(n)
    q = torch.rand(9, generator=generator, dtype=torch.float64)
    w = (3 * torch.randn(9, generator=generator, dtype=torch.float64)).exp()
    q[3], w[5] = 0.0, 0.0
    q = q / q.sum()
    torch.testing.assert_close(best_of_law(q.log(), w.log() - 40, n).exp(), enumerated(q, w, n), rtol=1e-12, atol=0)


def test_weights_that_are_as_far_apart_as_rewards_over_beta():
    """Of two even draws the light one is picked if both are it, ¼, at any distance; a draw alone (n = 1) is of q, whatever it
    weighs; of two draws with weights e^{10⁴} apart the heavier one is picked."""
    even = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    for far in (20.0, 800.0, 1e4, 1e6):
        law = best_of_law(even, torch.tensor([0.0, -far], dtype=torch.float64), 2).exp()
        torch.testing.assert_close(
            law, torch.tensor([0.75, 0.25], dtype=torch.float64), rtol=1e-8 if far == 20.0 else 1e-12, atol=0
        )
    rare = torch.tensor([1e-12, 1 - 1e-12], dtype=torch.float64)
    torch.testing.assert_close(best_of_law(rare.log(), -rare.log(), 1).exp(), rare, rtol=1e-12, atol=0)
    q = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    law = best_of_law(q.log(), torch.tensor([2e4, 1e4, 0.0], dtype=torch.float64), 2).exp()
    torch.testing.assert_close(law, torch.tensor([0.36, 0.39, 0.25], dtype=torch.float64), rtol=1e-12, atol=0)


def test_large_n_is_the_target_and_the_first_order_is_as_stated():
    """p_n/π* − 1 = (1 + χ² − u)/n within a tenth at n = 1000; equal weights leave q as it is."""
    generator = torch.Generator().manual_seed(0)
    q = torch.rand(20, generator=generator, dtype=torch.float64)
    q = q / q.sum()
    w = torch.randn(20, generator=generator, dtype=torch.float64).exp()
    u = w / (q @ w)
    target = q * u
    first = (target @ u - u) / 1000
    found = best_of_law(q.log(), w.log(), 1000).exp() / target - 1
    assert float((found - first).abs().max()) < 0.1 * float(first.abs().max())
    torch.testing.assert_close(best_of_law(q.log(), torch.zeros(20), 7).exp(), q, rtol=1e-8, atol=1e-9)


def test_what_has_no_law():
    q = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    for log_q, log_w, n in (
        (q, q, 0),
        (q - 1, q, 2),
        (q, torch.full((2,), -math.inf), 2),
        (q, q * math.nan, 2),
        (q, q + math.inf, 2),
        (q, q, 2.5),
        (q, q[:1], 2),
    ):
        with pytest.raises(ArgumentError, match="best_of_law"):
            best_of_law(log_q, log_w, n)
