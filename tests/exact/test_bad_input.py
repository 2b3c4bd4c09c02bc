"""Bad arrays: one clear error each, naming the argument, what was found and where."""

from __future__ import annotations

import math

import pytest
import torch

import multiref as mr
from multiref.errors import ArgumentError, EmptyPoolError, MultirefError, WeightsError

NEG_INF = -math.inf
REWARD = torch.zeros(2, 3, dtype=torch.float64)
REFS = torch.full((2, 2, 3), 1 / 3, dtype=torch.float64).log()
FAMILIES = [mr.ReverseKL, mr.ForwardKL, mr.AlphaDivergence, mr.PooledKL]
every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)


@every_family
@pytest.mark.parametrize(
    "weights, says",
    [
        ((-0.1, 1.1), "-0.1"),
        ((0.5, 0.6), "1.1"),
        ((0.2, 0.2), "0.4"),
        ((0.0, 0.0), "0"),
        ((math.nan, 0.5), "nan"),
        ((math.inf, 0.0), "inf"),
        ((0.2, 0.3, 0.5), "2 references"),
        ((1.0,), "2 references"),
        ((), "weights"),
        (("a", "b"), "weights"),
        (0.5, "found 0.5"),
        (torch.tensor(0.5), "shape ()"),
    ],
)
def test_weights(family, weights, says):
    with pytest.raises(WeightsError, match="weights") as caught:
        mr.exact.solve(REWARD, REFS, family(weights), beta=1.0)
    assert says.lower() in str(caught.value).lower()


@pytest.mark.parametrize("weights", [torch.ones(2, 3) / 2, torch.ones(2, 2, 4) / 2, torch.ones(2, 2, 3, 1) / 2])
def test_weights_of_another_shape(weights):
    with pytest.raises(WeightsError, match="shape"):
        mr.pools.power_pool(REFS, weights)


@pytest.mark.parametrize("call", [lambda w: mr.pools.power_pool(REFS, w), lambda w: mr.divergences.disagreement(REFS, w)])
@pytest.mark.parametrize("weights", [(0.5, 0.6), (0.3, 0.3, 0.4), (math.nan, 1.0), (-1.0, 2.0)])
def test_weights_of_the_array_functions(call, weights):
    with pytest.raises(WeightsError):
        call(weights)


@pytest.mark.parametrize("alpha", [-1000.0, 1000.0])
def test_an_alpha_whose_powers_overflow_is_refused_and_not_answered_by_nan(alpha):
    """6^±1000 is no float."""
    refs, reward = torch.full((1, 6), 1 / 6).double().log(), torch.arange(6.0).double()
    with pytest.raises(ArgumentError, match=f"alpha: found {alpha:g}.*float64.*nearer to 1"):
        mr.exact.solve(reward, refs, mr.AlphaDivergence(alpha=alpha), beta=0.1)


@pytest.mark.parametrize("weights", [None, (), (1.0,)])
def test_no_reference_at_all_is_refused_by_name(weights):
    with pytest.raises(WeightsError, match="weights: found no reference"):
        mr.pools.power_pool(torch.zeros(0, 4), weights)


def test_weights_that_nearly_sum_to_one_are_taken():
    """float32 weights sum to one within 1e-7."""
    weights = torch.tensor([0.1, 0.2, 0.7])
    regularizer = mr.ReverseKL(weights)
    assert sum(regularizer.weights) == pytest.approx(1.0, abs=1e-15)


@every_family
@pytest.mark.parametrize(
    "beta", [0.0, -1.0, math.nan, math.inf, None, 1j, [0.1], torch.full((3,), 0.1), torch.full((2, 1), 0.1)], ids=str
)
def test_beta(family, beta):
    """Of three numbers, three completions would each have had their own: one strength is meant."""
    for call in (
        lambda: mr.exact.solve(REWARD, REFS, family(), beta=beta),
        lambda: mr.exact.value(REFS[0], REWARD, REFS, family(), beta=beta),
        lambda: family().implicit_reward(REFS[0], REFS, beta=beta),
    ):
        with pytest.raises(ArgumentError, match="beta"):
            call()


@every_family
@pytest.mark.parametrize("wrong, says", [(math.nan, "NaN"), (0.7, "0.7"), (math.inf, "inf")])
def test_log_probabilities(family, wrong, says):
    bad = REFS.clone()
    bad[1, 0, 2] = wrong
    for call in (
        lambda: mr.exact.solve(REWARD, bad, family(), beta=1.0),
        lambda: mr.exact.value(REFS[0], REWARD, bad, family(), beta=1.0),
        lambda: mr.pools.power_pool(bad),
        lambda: mr.divergences.disagreement(bad),
        lambda: mr.exact.merge(bad),
    ):
        with pytest.raises(ArgumentError, match="(?i)" + says):
            call()


@pytest.mark.parametrize("wrong", [math.nan, 0.7])
def test_an_f_divergence_looks_at_its_log_probabilities(wrong):
    bad, rule = REFS.clone(), mr.FDivergence.jensen_shannon()
    bad[1, 0, 2] = wrong
    for call in (
        lambda: rule.penalty(REFS[0], bad),
        lambda: rule.penalty(bad[1], REFS),
        lambda: rule.implicit_reward(REFS[0], bad, beta=1.0),
    ):
        with pytest.raises(ArgumentError, match="at most zero"):
            call()


def test_the_policy_is_checked_too():
    for wrong in (math.nan, 0.7):
        bad = REFS[0].clone()
        bad[0, 0] = wrong
        with pytest.raises(ArgumentError, match="log_policy"):
            mr.exact.value(bad, REWARD, REFS, mr.ReverseKL(), beta=1.0)


@every_family
def test_probabilities_instead_of_log_probabilities(family):
    with pytest.raises(ArgumentError, match=r"(?i)log-probabilities"):
        mr.exact.solve(REWARD, REFS.exp(), family(), beta=1.0)


@every_family
@pytest.mark.parametrize("wrong, says", [(math.nan, "NaN"), (math.inf, "inf")])
def test_rewards(family, wrong, says):
    bad = REWARD.clone()
    bad[1, 1] = wrong
    with pytest.raises(ArgumentError, match=f"(?s)reward.*{says}"):
        mr.exact.solve(bad, REFS, family(), beta=1.0)


@every_family
@pytest.mark.parametrize(
    "reward, refs",
    [
        (torch.zeros(2, 4).double(), REFS),
        (torch.zeros(3, 3).double(), REFS),
        (torch.zeros(()).double(), REFS),
        (REWARD, REFS[0, 0]),
        (REWARD.long(), REFS),
        ([[0.0, 1.0, 2.0]], REFS),
        (torch.zeros(2, 1).double(), REFS),
    ],
)
def test_shapes_and_types(family, reward, refs):
    with pytest.raises(ArgumentError, match=r"reward|ref_logps"):
        mr.exact.solve(reward, refs, family(), beta=1.0)


@pytest.mark.parametrize("shape", [(2, 4), (3, 3), (4,), (2, 1)])
def test_a_policy_of_another_shape(shape):
    policy = torch.zeros(shape, dtype=torch.float64).log_softmax(-1)
    for regularizer in (mr.ReverseKL(), mr.ForwardKL(), mr.AlphaDivergence(alpha=0.5)):
        with pytest.raises(ArgumentError, match="log_policy"):
            mr.exact.value(policy, REWARD, REFS, regularizer, beta=1.0)


def empty_at(*rows: int, rows_in_all: int = 4) -> torch.Tensor:
    """Two references that share no completion in the given rows."""
    refs = torch.full((2, rows_in_all, 4), 0.25, dtype=torch.float64).log()
    for row in rows:
        refs[0, row, :2] = refs[1, row, 2:] = NEG_INF
    return refs


@pytest.mark.parametrize("family", [mr.ReverseKL(), mr.AlphaDivergence(alpha=2.0), mr.PooledKL(order=-1)])
def test_an_empty_pool_names_its_rows(family):
    with pytest.raises(EmptyPoolError) as caught:
        mr.exact.solve(torch.zeros(4, 4).double(), empty_at(1, 3), family, beta=1.0)
    message = str(caught.value)
    assert "2 of 4 rows" in message and "1, 3" in message and "ForwardKL" in message


def test_an_empty_pool_in_merge_and_in_nested_batches():
    with pytest.raises(EmptyPoolError, match="2"):
        mr.exact.merge(empty_at(2))
    with pytest.raises(EmptyPoolError, match=r"\(1, 0\)"):
        mr.exact.solve(torch.zeros(2, 2, 4).double(), empty_at(2).reshape(2, 2, 2, 4), mr.ReverseKL(), beta=1.0)
    with pytest.raises(EmptyPoolError):
        mr.exact.solve(torch.zeros(4).double(), empty_at(0, rows_in_all=1)[:, 0], mr.ReverseKL(), beta=1.0)


def test_no_pool_is_empty_where_zeros_do_not_veto():
    """α < 1, or the vetoing reference at weight zero."""
    for regularizer in (mr.ForwardKL(), mr.AlphaDivergence(alpha=0.5), mr.ReverseKL([1.0, 0.0])):
        solution = mr.exact.solve(torch.zeros(4, 4).double(), empty_at(1, 3), regularizer, beta=1.0)
        assert torch.isfinite(solution.value).all()


def test_a_row_with_no_reward_at_all():
    reward = REWARD.clone()
    reward[1] = NEG_INF
    for family in FAMILIES:
        with pytest.raises(EmptyPoolError, match="1"):
            mr.exact.solve(reward, REFS, family(), beta=1.0)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_orders_and_alphas(number):
    with pytest.raises(ArgumentError, match="alpha"):
        mr.AlphaDivergence(alpha=number)
    with pytest.raises(ArgumentError, match="order"):
        mr.PooledKL(order=number)
    with pytest.raises(ArgumentError, match="order"):
        mr.pools.power_pool(REFS, order=number)


@pytest.mark.parametrize("smoothing", [-0.1, 0.5, 1.0, math.nan])
def test_label_smoothing(smoothing):
    with pytest.raises(ArgumentError, match="label_smoothing"):
        mr.losses.bradley_terry(torch.zeros(2), torch.zeros(2), label_smoothing=smoothing)


def test_every_error_is_one_of_ours():
    for error in (ArgumentError, WeightsError, EmptyPoolError):
        assert issubclass(error, MultirefError) and issubclass(error, ValueError)


@pytest.mark.parametrize("batch", [(), (4,)], ids=["one prompt", "prompts"])
@pytest.mark.parametrize("regularizer", [*FAMILIES, mr.FDivergence.jensen_shannon], ids=lambda f: f.__name__)
def test_weights_of_completions_are_refused(regularizer, batch):
    """No divergence of distributions has weights [K, *B, Y]: only those of prompts are weights of a problem."""
    refs = torch.randn(2, *batch, 3, generator=torch.Generator().manual_seed(0)).double().log_softmax(-1)
    reward, odd = torch.zeros(*batch, 3).double(), torch.tensor([0.2, 0.8]).double()
    weights = odd.reshape(2, *[1] * (len(batch) + 1)).expand(2, *batch, 3)
    calls = [
        lambda w: mr.exact.solve(reward, refs, regularizer(weights=w), beta=1.0),
        lambda w: mr.exact.value(refs[0], reward, refs, regularizer(weights=w), beta=1.0),
        lambda w: regularizer(weights=w).penalty(refs[0], refs),
        lambda w: mr.exact.merge(refs, w),
        lambda w: mr.divergences.disagreement(refs, w),
    ]
    for call in calls:
        call(odd)
        call(weights[..., 0])
        with pytest.raises(WeightsError, match="more axes"):
            call(weights)
