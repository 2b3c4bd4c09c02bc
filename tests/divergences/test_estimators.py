"""k1, k2, k3 on a language model small enough to enumerate: what each is worth as a value, and where it leads as a loss or in
the reward (docs/theory.md 6).

Three tokens, two steps: nine completions, four states. Expectations are sums over completions;
every target gradient is a central difference of the target's own definition, so neither side shares a derivative with the
other.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from multiref.divergences import k1, k2, k3
from multiref.training.online import K3Loss, Samples

TOKENS, WEIGHTS = 3, (0.3, 0.7)
PATHS = torch.tensor(list(itertools.product(range(TOKENS), repeat=2)))  # [9, 2]
STATES = torch.stack(
    [torch.zeros(len(PATHS), dtype=torch.long), 1 + PATHS[:, 0]], 1
)  # the row of the table that each token is drawn from
GENERATOR = torch.Generator().manual_seed(0)
POLICY = torch.randn(1 + TOKENS, TOKENS, generator=GENERATOR, dtype=torch.float64)
REFERENCES = torch.randn(2, 1 + TOKENS, TOKENS, generator=GENERATOR, dtype=torch.float64)
ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


def token_logps(table: Tensor) -> Tensor:
    """[4, 3] → [9, 2]: log-probabilities of each token of each completion."""
    return table.log_softmax(-1)[STATES, PATHS]


REF_TOKENS = torch.stack([token_logps(table) for table in REFERENCES])  # [2, 9, 2]
REF_COMPLETIONS = REF_TOKENS.sum(-1)  # [2, 9]


def chance(table: Tensor) -> Tensor:
    return token_logps(table).sum(-1).exp()


def objective(table: Tensor) -> Tensor:
    """T1 = Σ_k w_k KL(π‖π_k) over completions, from the definition."""
    p = chance(table)
    return sum(w * (p * (p.log() - r)).sum() for w, r in zip(WEIGHTS, REF_COMPLETIONS))


def visits(table: Tensor) -> Tensor:
    """[4]: how often each state is visited."""
    return torch.cat([torch.ones(1, dtype=table.dtype), table.log_softmax(-1)[0].exp()])


def frozen_reverse(table: Tensor) -> Tensor:
    """Σ_s d(s) Σ_k w_k KL(π(·|s)‖π_k(·|s)), the visits d held at POLICY."""
    here, refs = table.log_softmax(-1), REFERENCES.log_softmax(-1)
    return sum(w * (visits(POLICY)[:, None] * here.exp() * (here - r)).sum() for w, r in zip(WEIGHTS, refs))


def frozen_forward_to_the_mixture(table: Tensor) -> Tensor:
    """Σ_s d(s) KL(Σ_k w_k π_k(·|s)‖π(·|s)), the visits held at POLICY."""
    mixture = sum(w * r.log_softmax(-1).exp() for w, r in zip(WEIGHTS, REFERENCES))
    return (visits(POLICY)[:, None] * mixture * (mixture.log() - table.log_softmax(-1))).sum()


def forward_to_the_mixture(table: Tensor) -> Tensor:
    """KL(Σ_k w_k π_k‖π) over completions."""
    mixture = sum(w * r.exp() for w, r in zip(WEIGHTS, REF_COMPLETIONS))
    return (mixture * (mixture.log() - chance(table).log())).sum()


def slope(target: Callable[[Tensor], Tensor], step: float = 1e-5) -> Tensor:
    """[4, 3]: central differences of a target at POLICY."""
    out = torch.zeros_like(POLICY)
    for i in range(POLICY.numel()):
        nudge = torch.zeros(POLICY.numel(), dtype=torch.float64)
        nudge[i] = step
        nudge = nudge.reshape(POLICY.shape)
        out.view(-1)[i] = (target(POLICY + nudge) - target(POLICY - nudge)) / (2 * step)
    return out


def as_loss(estimate: Callable[[Tensor], Tensor], *, ratio: bool = False) -> Tensor:
    """[4, 3]: the expected gradient of Σ estimate over completions sampled from POLICY, the sampling held fixed."""
    table = POLICY.clone().requires_grad_()
    tokens = token_logps(table)
    values = estimate(tokens)
    if ratio:
        values = (tokens - tokens.detach()).exp() * values
    (gradient,) = torch.autograd.grad((chance(POLICY) * values.sum(-1)).sum(), table)
    return gradient


def in_reward(estimator) -> Tensor:
    """[4, 3]: E Σ_t (Σ_{t' ≥ t} estimate) ∇ log π(y_t), the estimate detached and summed from each token on."""
    table = POLICY.clone().requires_grad_()
    tokens = token_logps(table)
    to_go = estimator(tokens.detach(), REF_TOKENS, WEIGHTS).flip(-1).cumsum(-1).flip(-1)
    (gradient,) = torch.autograd.grad((chance(POLICY)[:, None] * to_go * tokens).sum(), table)
    return gradient


def close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() < 1e-8)


def per_token(estimator):
    return lambda tokens: estimator(tokens, REF_TOKENS, WEIGHTS)


def per_completion(estimator):
    return lambda tokens: estimator(tokens.sum(-1), REF_COMPLETIONS, WEIGHTS)[:, None]


# --- as a value -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, unbiased", [("k1", True), ("k2", False), ("k3", True)])
@pytest.mark.parametrize("level", [per_token, per_completion])
def test_value(name, unbiased, level):
    """k1 and k3 are unbiased for Σ_k w_k KL(π‖π_k), summed over tokens or taken of the completion; k2 is not."""
    value = (chance(POLICY) * level(ESTIMATORS[name])(token_logps(POLICY)).sum(-1)).sum()
    assert (abs(value - objective(POLICY)) < 1e-12) == unbiased
    assert unbiased or abs(value - objective(POLICY)) > 0.05


def test_k3_is_never_negative_and_k1_is():
    assert (k3(token_logps(POLICY), REF_TOKENS, WEIGHTS) >= 0).all()
    assert (k1(token_logps(POLICY), REF_TOKENS, WEIGHTS) < 0).any()


def test_by_hand():
    """log π = −1, references −2 and −½, weights ¼ and ¾: ℓ = 1 and −½."""
    policy, refs, w = torch.tensor(-1.0).double(), torch.tensor([-2.0, -0.5]).double(), (0.25, 0.75)
    e = torch.tensor([-1.0, 0.5]).double().exp()
    assert k1(policy, refs, w).item() == pytest.approx(0.25 * 1 - 0.75 * 0.5, abs=1e-15)
    assert k2(policy, refs, w).item() == pytest.approx(0.25 * 0.5 + 0.75 * 0.125, abs=1e-15)
    assert k3(policy, refs, w).item() == pytest.approx((0.25 * e[0] + 0.75 * (e[1] - 1.5)).item(), abs=1e-15)


# --- as a loss --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [per_token, per_completion])
def test_k1_as_a_loss_is_noise(level):
    """Its expected gradient is zero, though no sample's is."""
    assert close(as_loss(level(k1)), torch.zeros_like(POLICY))


def test_k2_as_a_loss_follows_reverse_kl():
    """Per token: the gradient of Σ_k w_k KL at the visited states, visits held fixed. Per completion: the whole gradient."""
    assert close(as_loss(per_token(k2)), slope(frozen_reverse))
    assert close(as_loss(per_completion(k2)), slope(objective))
    assert not close(slope(frozen_reverse), slope(objective))


def test_k2_of_each_reference_of_the_pool_and_of_the_renormalised_pool_agree_as_losses():
    """Σ_k w_k k2(ℓ_k), k2 of Σ_k w_k ℓ_k, and k2 of the ratio to the renormalised token pool:
    one gradient (log F is a baseline)."""
    pool = sum(w * r for w, r in zip(WEIGHTS, REF_TOKENS))
    table = sum(w * r.log_softmax(-1) for w, r in zip(WEIGHTS, REFERENCES)).log_softmax(-1)
    expected = as_loss(per_token(k2))
    assert close(as_loss(lambda tokens: k2(tokens, pool[None])), expected)
    assert close(as_loss(lambda tokens: k2(tokens, token_logps(table)[None])), expected)


def test_k3_as_a_loss_follows_forward_kl_to_the_arithmetic_mixture():
    """Not reverse KL, and not the geometric pool."""
    assert close(as_loss(per_token(k3)), slope(frozen_forward_to_the_mixture))
    assert close(as_loss(per_completion(k3)), slope(forward_to_the_mixture))
    assert not close(as_loss(per_token(k3)), slope(frozen_reverse))


def test_k3_times_the_ratio_follows_reverse_kl():
    """ρ Σ_k w_k k3(ℓ_k), ρ = π/π_old kept differentiable: the gradient of Σ_k w_k KL at the visited states."""
    assert close(as_loss(per_token(k3), ratio=True), slope(frozen_reverse))


def test_k3_of_the_pool_as_it_stands_and_corrected():
    """k3(ℓ̄), ℓ̄ = Σ_k w_k ℓ_k: worth T1 + E Σ_t (F_t − 1), and as a loss it follows F_t times the forward KL(ĝ_t‖π_t).
    e^{−ℓ̄} − F_t + ℓ̄ is worth T1 and has the same gradient (docs/theory.md 6)."""
    pool = sum(w * r for w, r in zip(WEIGHTS, REF_TOKENS))[None]
    log_g = sum(w * r.log_softmax(-1) for w, r in zip(WEIGHTS, REFERENCES))
    mass = log_g.exp().sum(-1)  # F_t of each state
    short = (chance(POLICY) * (mass[STATES] - 1).sum(-1)).sum()
    value = (chance(POLICY) * k3(token_logps(POLICY), pool).sum(-1)).sum()
    assert abs(value - objective(POLICY) - short) < 1e-12 and short < -1e-2

    def weighted_forward(table: Tensor) -> Tensor:
        return (visits(POLICY)[:, None] * log_g.exp() * (log_g - mass[:, None].log() - table.log_softmax(-1))).sum()

    def corrected(tokens: Tensor) -> Tensor:
        ratio = tokens - pool[0]
        return (-ratio).exp() - mass[STATES] + ratio

    assert abs((chance(POLICY) * corrected(token_logps(POLICY)).sum(-1)).sum() - objective(POLICY)) < 1e-12
    for estimate in (lambda tokens: k3(tokens, pool), corrected):
        assert close(as_loss(estimate), slope(weighted_forward))


def test_k3_of_the_renormalised_pool():
    """The authors' rule: worth E Σ_t KL(π_t‖ĝ_t) = T1 − E D, and as a loss the forward KL(ĝ_t‖π_t) at the visited states."""
    log_g = sum(w * r.log_softmax(-1) for w, r in zip(WEIGHTS, REFERENCES))
    price, table = -log_g.logsumexp(-1), log_g.log_softmax(-1)
    value = (chance(POLICY) * k3(token_logps(POLICY), token_logps(table)[None]).sum(-1)).sum()
    assert abs(value - objective(POLICY) + (chance(POLICY) * price[STATES].sum(-1)).sum()) < 1e-12

    def forward(policy: Tensor) -> Tensor:
        return (visits(POLICY)[:, None] * table.exp() * (table - policy.log_softmax(-1))).sum()

    assert close(as_loss(lambda tokens: k3(tokens, token_logps(table)[None])), slope(forward))


# --- in the reward ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, exact", [("k1", True), ("k2", False), ("k3", False)])
def test_in_the_reward(name, exact):
    """k1 in the reward, detached and summed from each token on, is the exact gradient of Σ_k w_k KL(π‖π_k),
    future visits included; k2 and k3 are not."""
    error = (in_reward(ESTIMATORS[name]) - slope(objective)).abs().max()
    assert error < 1e-8 if exact else error > 1e-3


# --- shapes and zero weight
# -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_reference_of_weight_zero_is_absent(name):
    """Whatever it says, an impossibility included, in value and in gradient."""
    estimator = ESTIMATORS[name]
    policy = token_logps(POLICY).requires_grad_()
    refs = torch.cat([REF_TOKENS, torch.full_like(REF_TOKENS[:1], -torch.inf)])
    found = estimator(policy, refs, (*WEIGHTS, 0.0))
    torch.testing.assert_close(found, estimator(policy, REF_TOKENS, WEIGHTS), rtol=0, atol=1e-14)
    (gradient,) = torch.autograd.grad(found.sum(), policy)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_absent_reference_far_above_the_policy_is_absent(dtype):
    """e^{−ℓ} of 900 nats is no number, and 0 · ∞ was NaN, in value and gradient: of k3, and of the penalty of its name."""
    policy = torch.tensor([[-900.0, -1.0]], dtype=dtype, requires_grad=True)
    refs = torch.tensor([[[-0.5, -2.0]], [[-900.5, -1.5]]], dtype=dtype)
    samples = Samples(policy, torch.ones(1, 2, dtype=torch.bool), refs.sum(-1), (0.0, 1.0), ref_token_logps=refs)
    for found in (k3(policy, refs, (0.0, 1.0)), K3Loss().loss_terms(samples)):
        torch.testing.assert_close(found, torch.full_like(policy, math.exp(-0.5) - 0.5))
        (gradient,) = torch.autograd.grad(found.sum(), policy)
        torch.testing.assert_close(gradient, torch.full_like(policy, 1 - math.exp(-0.5)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64], ids=str)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_few_bits_and_whole_numbers_are_rounded_on_the_way_in_alone(name, dtype):
    """Weights of ¼ and ¾ are no whole numbers: k1 was log π alone; in bfloat16 it was 0.1 off at −40."""
    policy, refs = torch.tensor([-39.0, -41.25]).to(dtype), torch.tensor([[-37.5, -40.0], [-40.25, -43.0]]).to(dtype)
    found = ESTIMATORS[name](policy, refs, (0.3, 0.7))
    expected = ESTIMATORS[name](policy.double(), refs.double(), (0.3, 0.7))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_weights_per_completion(name):
    """[K, B] weighs each completion's tokens by its own column."""
    weights = torch.rand(9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = torch.stack([weights, 1 - weights])
    found = ESTIMATORS[name](token_logps(POLICY), REF_TOKENS, weights)
    for i in range(9):
        single = ESTIMATORS[name](token_logps(POLICY)[i], REF_TOKENS[:, i], tuple(weights[:, i].tolist()))
        torch.testing.assert_close(found[i], single, rtol=0, atol=1e-14)
