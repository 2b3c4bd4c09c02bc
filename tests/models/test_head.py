"""The fused head against log_softmax and gather, values and gradients, whatever the budget."""

import pytest
import torch
import torch.utils.checkpoint

from multiref.errors import ArgumentError
from multiref.models.head import label_logps


@pytest.mark.parametrize("budget", [1, 5, 20, 10_000])
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradcheck(budget, with_bias):
    torch.manual_seed(0)
    hidden = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(7, dtype=torch.float64, requires_grad=True) if with_bias else None
    labels = torch.tensor([0, 6, 3, 3])

    def plain(h, w, b=None):
        return torch.nn.functional.linear(h, w, b).log_softmax(-1).gather(1, labels[:, None])[:, 0]

    def fused(h, w, b=None):
        return label_logps(h, w, b, labels, budget=budget)

    inputs = (hidden, weight) if bias is None else (hidden, weight, bias)
    assert torch.allclose(fused(*inputs), plain(*inputs), atol=1e-12)
    assert torch.autograd.gradcheck(fused, inputs)
    fixed = [each.detach() for each in inputs[1:]]  # under an adapter the gradient is found in the forward pass
    assert torch.autograd.gradcheck(lambda h: fused(h, *fixed), (hidden,))


@pytest.mark.parametrize("budget", [4, 10_000])
def test_a_confident_label_keeps_its_small_gradient_in_half_precision(budget):
    """1 − p = 1e-4 is below bfloat16's steps near 1: W_label − Σ_v p_v W_v would be rounded away."""
    torch.manual_seed(0)
    hidden, weight = torch.ones(1, 1, dtype=torch.bfloat16, requires_grad=True), torch.randn(6, 1, dtype=torch.bfloat16)
    weight[2] = 11.0
    label_logps(hidden, weight, None, torch.tensor([2]), budget=budget).backward()
    z = weight.double()[:, 0]
    expected = z[2] - (z.softmax(0) * z).sum()
    assert 0 < expected < 2e-3
    assert torch.allclose(hidden.grad.double(), expected, rtol=0.02)


@pytest.mark.parametrize("fixed", [True, False])
def test_sums_over_many_entries_or_tokens_do_not_end_where_float16_does(fixed):
    """Σ_v e^{z_v − top} W_v of 2,047 equal logits is 204,700, and Σ_t (1 − p) h_t of 256 tokens 76,762: both above 65,504.
    ∂/∂h = W_label − Σ_v p_v W_v = −100 · 2047/2048;   ∂/∂W_label = Σ_t (1 − p) h_t, where all z are equal."""
    weight = torch.full((2048, 2), 100.0)
    weight[0], weight[:, 0] = 0.0, 0.0
    hidden = torch.tensor([[300.0, 0.0]]).repeat(256, 1).requires_grad_()
    head = weight.clone().requires_grad_(not fixed)
    with torch.autocast("cpu", dtype=torch.float16):
        label_logps(hidden, head, None, torch.zeros(256, dtype=torch.long), budget=2**20).sum().backward()
    assert torch.allclose(hidden.grad, torch.tensor([0.0, -100 * 2047 / 2048]).expand(256, 2), rtol=2e-3)
    if not fixed:
        expected = torch.full((2048,), -256 * 300 / 2048)
        expected[0] = 256 * 300 * 2047 / 2048
        assert torch.allclose(head.grad[:, 0], expected, rtol=2e-3) and not head.grad[:, 1].any()


def test_only_what_needs_a_gradient_gets_one():
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4)
    label_logps(hidden, weight, None, torch.tensor([0, 1, 2]), budget=100).sum().backward()
    assert hidden.grad is not None and weight.grad is None


def test_large_logits_do_not_overflow():
    """Logits of ±400: exp would overflow, and the shift must come from the largest of all blocks, not of the first."""
    weight = torch.tensor([[-400.0], [0.0], [400.0], [399.0]])
    for budget in (1, 2, 100):
        logps = label_logps(torch.ones(4, 1), weight, None, torch.arange(4), budget=budget)
        assert torch.allclose(logps, weight[:, 0].log_softmax(0))


def test_autocast_multiplies_in_half_precision_and_returns_single():
    torch.manual_seed(0)
    hidden, weight = torch.randn(8, 16, requires_grad=True), torch.randn(20, 16, requires_grad=True)
    labels = torch.arange(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logps = label_logps(hidden, weight, None, labels, budget=50)
    logps.sum().backward()
    assert logps.dtype == hidden.grad.dtype == weight.grad.dtype == torch.float32
    expected = torch.nn.functional.linear(hidden, weight).log_softmax(-1).gather(1, labels[:, None])[:, 0]
    assert torch.allclose(logps, expected, atol=0.1) and not torch.equal(logps, expected)


@pytest.mark.parametrize("fixed", [False, True])
def test_saved_tensors_are_asked_for_once(fixed):
    """What recomputes them (a checkpoint around the whole model) or moves them (offloading) gives them no second time."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(6, 4, requires_grad=True), torch.randn(9, 4, requires_grad=not fixed)

    def loss(h):
        return label_logps(h, weight, None, torch.arange(6), budget=20).sum()

    (expected,) = torch.autograd.grad(loss(hidden), hidden)
    torch.utils.checkpoint.checkpoint(loss, hidden, use_reentrant=False).backward()
    assert torch.equal(hidden.grad, expected)


@pytest.mark.parametrize("fixed", [False, True])
def test_a_second_derivative_is_refused(fixed):
    """The gradient is a number by then: that it depends on the hidden state would be left out without a word."""
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=not fixed)
    logps = label_logps(hidden, weight, None, torch.arange(3), budget=100)
    with pytest.raises(ArgumentError, match="no second derivative"):
        torch.autograd.grad(logps.square().sum(), hidden, create_graph=True)


@pytest.mark.parametrize("fixed", [False, True])
def test_a_first_block_that_is_forbidden(fixed):
    """Biases of −∞ on all of the block that comes first: its largest logit is no number to subtract."""
    torch.manual_seed(0)
    hidden, weight = (torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (4, 12))
    bias, labels = torch.tensor([-torch.inf] * 6 + [0.0] * 6, dtype=torch.float64), torch.tensor([6, 7, 11, 2])
    logps = label_logps(hidden, weight.detach() if fixed else weight, bias, labels, budget=8)
    plain = torch.nn.functional.linear(hidden, weight, bias).log_softmax(-1).gather(1, labels[:, None])[:, 0]
    assert torch.allclose(logps, plain) and logps[3] == -torch.inf
    found, expected = (torch.autograd.grad(each[:3].sum(), hidden)[0] for each in (logps, plain))
    assert torch.allclose(found, expected)


def test_autocast_leaves_float64_alone():
    """As it does in a linear layer."""
    hidden, weight, labels = torch.randn(3, 4).double(), torch.randn(7, 4).double(), torch.arange(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = torch.nn.functional.linear(hidden, weight).log_softmax(-1).gather(1, labels[:, None])[:, 0]
        assert torch.allclose(label_logps(hidden, weight, None, labels, budget=100), plain, atol=1e-12)
