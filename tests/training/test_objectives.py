"""Objectives as arrays: formulas by hand, laws, and what happens where ratios span e^{±300}."""

import math

import pytest
import torch

import multiref as mr
from multiref.errors import ArgumentError
from multiref.training import AdaptiveWeights, LengthNormalised, MultiDPO, PairLogps, Preference, TrustRegion, mrpo

BETA = 0.3


def random_pairs(k=3, count=40, scale=30.0, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return -scale * torch.rand(*shape, generator=generator, dtype=torch.float64) - 0.01

    lengths = torch.randint(1, 30, (k + 1, count, 2), generator=generator)
    return PairLogps(draw(count, 2), draw(k, count, 2), lengths[0], lengths[1:])


def shifted(pairs, policy):
    return PairLogps(policy, pairs.references, pairs.lengths, pairs.ref_lengths)


def test_multi_dpo_is_at_least_the_loss_of_the_geometric_pool():
    """Jensen: −log σ is convex, so Σ_k w_k loss_k ≥ loss of the average margin;
    equal where the references agree on the pair (docs/theory.md 3)."""
    weights, pairs = (0.2, 0.5, 0.3), random_pairs()
    many, one = MultiDPO(BETA, weights).losses(pairs), Preference(mr.ReverseKL(weights), BETA).losses(pairs)
    assert bool((many >= one - 1e-12).all()) and float((many - one).max()) > 0.1
    agreeing = PairLogps(pairs.policy, pairs.references[:1].expand(3, -1, -1), pairs.lengths, pairs.ref_lengths)
    torch.testing.assert_close(
        MultiDPO(BETA, weights).losses(agreeing), Preference(mr.ReverseKL(weights), BETA).losses(agreeing)
    )


def test_multi_dpo_does_not_see_an_absent_reference_that_gives_no_mass():
    """Weight 0 and log-probability −∞: the loss, its gradient and the rewards are those of the others alone."""
    pairs = random_pairs(2)
    absent = torch.where(torch.arange(40)[:, None] < torch.tensor([30, 20]), -torch.inf, pairs.references[1])
    every = PairLogps(
        pairs.policy.requires_grad_(), torch.stack((pairs.references[0], absent)), pairs.lengths, pairs.ref_lengths
    )
    alone = PairLogps(pairs.policy, pairs.references[:1], pairs.lengths, pairs.ref_lengths[:1])
    for name in ("losses", "rewards"):
        found, expected = (getattr(o, name)(p) for o, p in ((MultiDPO(BETA, (1.0, 0.0)), every), (MultiDPO(BETA), alone)))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        slopes = [torch.autograd.grad(each.sum(), pairs.policy)[0] for each in (found, expected)]
        torch.testing.assert_close(*slopes, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    "objective", [Preference(mr.ReverseKL(), BETA), MultiDPO(BETA), mrpo(BETA)], ids=["dpo", "mdpo", "mrpo"]
)
def test_a_constant_per_prompt_and_reference_changes_no_loss(objective):
    """log F, log Z and a reference's normaliser depend on the prompt alone.
    True for reverse KL and Multi-DPO; not for the harmonic pool."""
    pairs = random_pairs()
    constants = torch.linspace(-3, 0, 3, dtype=torch.float64)[:, None, None]
    moved = PairLogps(pairs.policy, pairs.references + constants, pairs.lengths, pairs.ref_lengths)
    same = torch.allclose(objective.losses(pairs), objective.losses(moved), atol=1e-10)
    assert same != (objective == mrpo(BETA))


def test_mrpo_weights_sit_on_their_own_reference():
    """−log(0.25/p_1 + 0.75/p_2) with p_1 = ½, p_2 = ⅛: −log(0.5 + 6) = −log 6.5. Swapped weights would give −log 3.5."""
    references = torch.tensor([0.5, 0.125], dtype=torch.float64).log()[:, None, None].expand(2, 1, 2)
    pairs = PairLogps(torch.zeros(1, 2, dtype=torch.float64), references, torch.ones(1, 2), torch.ones(2, 1, 2))
    rewards = mrpo(1.0, weights=(0.25, 0.75)).rewards(pairs)
    torch.testing.assert_close(rewards, torch.full((1, 2), math.log(6.5), dtype=torch.float64))


def test_the_trust_region_clips_around_the_anchor_by_hand():
    """K = 2, anchor second. log π: chosen (−40, −10), rejected (−12, −30); η = 0.1.

    means 25 and 21, shares 25/46 and 21/46; windows 0.1 · share of the anchor:
    chosen [−10 (1 + 0.0543), −10 (1 − 0.0543)] → −10.543 for −40; rejected [−30 (1.04565), −30 (0.95435)] → −28.630 for −12.
    The anchor stays.
    """
    references = torch.tensor([[[-40.0, -12.0]], [[-10.0, -30.0]]], dtype=torch.float64)
    from multiref.training.rivals import clipped_references

    clipped = clipped_references(references, 0.1, anchor=1)
    expected = torch.tensor([[[-10 * (1 + 0.1 * 25 / 46), -30 * (1 - 0.1 * 21 / 46)]], [[-10.0, -30.0]]], dtype=torch.float64)
    torch.testing.assert_close(clipped, expected)
    torch.testing.assert_close(clipped_references(references.flip(0), 0.1, anchor=0), expected.flip(0))


def test_adaptive_weights_come_from_the_raw_references_before_any_clip():
    """Margins 28 and 20 in size: weights 28/48 and 20/48 per pair, whatever the inner trust region then does."""
    references = torch.tensor([[[-40.0, -12.0]], [[-10.0, -30.0]]], dtype=torch.float64)
    pairs = PairLogps(torch.zeros(1, 2, dtype=torch.float64) - 20, references, torch.ones(1, 2), torch.ones(2, 1, 2))
    inner = Preference(mr.PooledKL(torch.tensor([[28 / 48], [20 / 48]], dtype=torch.float64), order=-1), BETA)
    expected = TrustRegion(inner, 0.1, 1).losses(pairs)
    torch.testing.assert_close(mrpo(BETA, trust_region=0.1, anchor=1, adaptive=True).losses(pairs), expected)
    assert isinstance(mrpo(BETA, adaptive=True), AdaptiveWeights)


def test_length_normalisation_divides_each_by_its_own_tokens():
    pairs = random_pairs(k=1)
    margin = pairs.policy / pairs.lengths - pairs.references[0] / pairs.ref_lengths[0]
    expected = mr.losses.bradley_terry(BETA * margin[:, 0], BETA * margin[:, 1])
    torch.testing.assert_close(LengthNormalised(Preference(mr.ReverseKL(), BETA)).losses(pairs), expected)


@pytest.mark.parametrize("regularizer", [mr.ForwardKL(), mr.AlphaDivergence(alpha=0.5), mr.AlphaDivergence(alpha=2.0)], ids=str)
def test_within_the_stated_range_the_reward_is_exact(regularizer):
    """|ℓ| ≤ log(1 + R/β)/|1 − α|: the same numbers as the regularizer's own implicit reward."""
    objective = Preference(regularizer, BETA)
    pairs = random_pairs()
    near = shifted(
        pairs,
        regularizer.pool(pairs.references) + torch.linspace(-1, 1, 80).double().reshape(40, 2) * objective.log_ratio_limit,
    )
    torch.testing.assert_close(
        objective.rewards(near), regularizer.implicit_reward(near.policy, near.references, beta=BETA), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("far", [-300.0, -95.0, -25.0, 25.0, 95.0, 300.0])
def test_far_from_the_pool_there_is_a_finite_gradient_of_the_right_sign(alpha, far):
    """Both completions `far` nats from the pool, the rejected one a nat better:
    raise chosen, lower rejected, at DPO's strength. float32.

    TRL 1.16's forward_kl has no gradient, or NaN, on such pairs.
    """
    regularizer = mr.ForwardKL() if alpha == 0 else mr.AlphaDivergence(alpha=alpha)
    policy = torch.tensor([[-400.0 + far, -399.0 + far]], requires_grad=True)
    references = torch.full((2, 1, 2), -400.0)
    Preference(regularizer, 0.1).losses(PairLogps(policy, references, torch.ones(1, 2), torch.ones(2, 1, 2))).sum().backward()
    chosen, rejected = policy.grad[0].tolist()
    assert -0.1 < chosen < -0.01 and 0.01 < rejected < 0.1


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
def test_the_continued_reward_is_strictly_increasing_and_continuous(alpha):
    regularizer = mr.ForwardKL() if alpha == 0 else mr.AlphaDivergence(alpha=alpha)
    objective = Preference(regularizer, BETA)
    grid = torch.linspace(-300, 300, 120_001, dtype=torch.float64).reshape(-1, 1).expand(-1, 2)
    references = torch.full((1, len(grid), 2), -350.0, dtype=torch.float64)
    rewards = objective.rewards(PairLogps(grid - 350, references, torch.ones(len(grid), 2), torch.ones(1, len(grid), 2)))[:, 0]
    steps = rewards.diff()
    assert float(steps.min()) > 0
    assert float(steps.max()) < 1.01 * (10 + BETA) * 0.005  # the steepest slope is β + R: no jump anywhere


@pytest.mark.parametrize("beta", [0, -1.0, math.nan, math.inf, "0.1", True])
def test_beta_is_checked(beta):
    with pytest.raises(ArgumentError, match="beta"):
        Preference(mr.ReverseKL(), beta)


def test_weights_per_pair_travel_with_the_batch():
    """[K, B] weights: pair by pair the objective at those weights."""
    pairs = random_pairs(k=2, count=5)
    weights = torch.rand(2, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    weights = weights / weights.sum(0)
    for made in (Preference(mr.ReverseKL(), BETA), Preference(mr.ForwardKL(), BETA), MultiDPO(BETA)):
        together = made.reweighted(weights).losses(pairs)
        for b in range(5):
            one = PairLogps(
                pairs.policy[b : b + 1],
                pairs.references[:, b : b + 1],
                pairs.lengths[b : b + 1],
                pairs.ref_lengths[:, b : b + 1],
            )
            torch.testing.assert_close(together[b : b + 1], made.reweighted(tuple(weights[:, b].tolist())).losses(one))


def test_the_trust_region_does_not_see_an_absent_reference():
    """Weight 0 (for all pairs, or for one): window, clip and loss are those of the others alone, also where it has no mass."""
    two = random_pairs(2)
    third = torch.full((1, 40, 2), -math.inf, dtype=torch.float64)
    third[:, ::2] = -500.0
    three = PairLogps(
        two.policy, torch.cat((two.references, third)), two.lengths, torch.cat((two.ref_lengths, two.lengths[None]))
    )
    expected = TrustRegion(Preference(mr.ReverseKL((0.3, 0.7)), BETA), 0.1, 1).losses(two)
    for weights in (torch.tensor([0.3, 0.7, 0.0]), torch.tensor([0.3, 0.7, 0.0])[:, None].expand(3, 40)):
        found = TrustRegion(Preference(mr.ReverseKL(weights.double()), BETA), 0.1, 1).losses(three)
        torch.testing.assert_close(found, expected)


def test_the_weight_in_use_is_that_of_each_pair_and_clipped_ratios_are_counted_under_wrappers():
    """ARWC by hand: margins 28 and 20 in size, 7/12 and 5/12; and ForwardKL's share is of what the inner objective is shown."""
    from multiref.training.metrics import pair_metrics

    references = torch.tensor([[[-40.0, -12.0]], [[-10.0, -30.0]]], dtype=torch.float64)
    one = PairLogps(torch.zeros(1, 2, dtype=torch.float64) - 20, references, torch.ones(1, 2), torch.ones(2, 1, 2))
    found = pair_metrics(mrpo(BETA, trust_region=0.1, anchor=1, adaptive=True), one, ("a", "b"))
    assert found["weights/a"].tolist() == pytest.approx([28 / 48]) and found["weights/b"].tolist() == pytest.approx([20 / 48])
    inner, pairs = Preference(mr.ForwardKL(), BETA), random_pairs(scale=200.0)
    normalised = PairLogps(pairs.policy / pairs.lengths, pairs.references / pairs.ref_lengths, pairs.lengths, pairs.ref_lengths)
    share = pair_metrics(LengthNormalised(inner), pairs, ("a", "b", "c"))["log_ratio_clipped"]
    expected = (inner.log_ratios(normalised).abs() > inner.log_ratio_limit).double().mean(-1)
    assert torch.equal(share, expected) and 0 < float(share.mean()) < 1


def test_ratios_of_an_f_divergence_are_clipped_where_its_slope_is_out_of_range():
    """Jeffreys: t f''(t) = 1 + e^{−ℓ} in ℓ = log t, 2 at 0; a factor of 1 + R/β = 3 is left below ℓ = −log 5 and never above.
    Ratios −1 and 50 to a, −2 and 0 to b: only −2 is beyond, if b is there."""
    references = torch.tensor([[[-2.0, -53.0]], [[-1.0, -3.0]]], dtype=torch.float64)
    pairs = PairLogps(torch.full((1, 2), -3.0, dtype=torch.float64), references, torch.ones(1, 2), torch.ones(2, 1, 2))
    for weights, expected in (((0.5, 0.5), [[True, False]]), ((1.0, 0.0), [[False, False]])):
        objective = Preference(mr.FDivergence.jeffreys(weights), 10.0, reward_range=20.0)
        assert objective.clipped(pairs).tolist() == expected
