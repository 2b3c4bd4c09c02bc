"""A batch is its rows: any leading shape, ragged supports, broadcast rewards, weights per example, no rows at all."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import multiref as mr

REGULARIZERS = {
    "reverse": lambda w: mr.ReverseKL(w),
    "forward": lambda w: mr.ForwardKL(w),
    "half": lambda w: mr.AlphaDivergence(w, alpha=0.5),
    "two": lambda w: mr.AlphaDivergence(w, alpha=2.0),
    "minus one": lambda w: mr.AlphaDivergence(w, alpha=-1.0),
    "nearly one": lambda w: mr.AlphaDivergence(w, alpha=1 + 1e-8),
    "mrpo": lambda w: mr.PooledKL(w, order=-1),
}
every_family = pytest.mark.parametrize("family", REGULARIZERS.values(), ids=REGULARIZERS)
WEIGHTS = (0.2, 0.5, 0.3)


def problem(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of very different difficulty: reward scales from 1e-2 to 1e2, references from flat to 1e-30,
    corners and vetoes among them."""
    rng = np.random.default_rng(seed)
    rows = shape[:-1]
    reward = rng.normal(size=shape) * 10 ** rng.uniform(-2, 2, size=(*rows, 1))
    logits = rng.normal(size=(3, *shape)) * 10 ** rng.uniform(-1, 1.3, size=(*rows, 1))
    outside, vetoed = rng.random(shape) < 0.1, rng.random(shape) < 0.1
    outside[..., 0] = vetoed[..., 0] = False
    logits[:, outside], logits[1, vetoed] = -np.inf, -np.inf
    return torch.from_numpy(reward), torch.from_numpy(logits).log_softmax(-1)


def assert_row(whole, index, single) -> None:
    for name in ("log_policy", "value", "multiplier", "log_partition"):
        batch, row = getattr(whole, name), getattr(single, name)
        assert (batch is None) == (row is None)
        if batch is not None:
            torch.testing.assert_close(batch[index], row, rtol=1e-13, atol=1e-13, msg=f"{name} of row {index}")


@every_family
@pytest.mark.parametrize("shape", [(6,), (7, 6), (2, 3, 6), (2, 1, 2, 6), (1, 6), (40, 1)])
def test_a_batch_is_its_rows(family, shape):
    reward, ref_logps = problem(*shape)
    whole = mr.exact.solve(reward, ref_logps, family(WEIGHTS), beta=0.3)
    assert whole.log_policy.shape == shape and whole.value.shape == whole.multiplier.shape == shape[:-1]
    values = mr.exact.value(whole.log_policy, reward, ref_logps, family(WEIGHTS), beta=0.3)
    assert values.shape == shape[:-1]
    for index in np.ndindex(*shape[:-1]):
        assert_row(whole, index, mr.exact.solve(reward[index], ref_logps[(slice(None), *index)], family(WEIGHTS), beta=0.3))


@every_family
def test_many_rows_of_very_different_difficulty(family):
    """Rows converge on their own: a batch of 200 agrees with its rows solved alone."""
    reward, ref_logps = problem(200, 9, seed=1)
    whole = mr.exact.solve(reward, ref_logps, family(WEIGHTS), beta=0.05)
    for i in range(0, 200, 8):
        assert_row(whole, i, mr.exact.solve(reward[i], ref_logps[:, i], family(WEIGHTS), beta=0.05))


@every_family
def test_padding_is_nothing(family):
    """A row padded with reward −inf and log-probability −inf is the row without the padding."""
    lengths, widest = (2, 5, 3, 7), 7
    rows = [problem(n, seed=n) for n in lengths]
    reward = torch.full((len(rows), widest), -math.inf, dtype=torch.float64)
    ref_logps = torch.full((3, len(rows), widest), -math.inf, dtype=torch.float64)
    for i, (r, lp) in enumerate(rows):
        reward[i, : len(r)], ref_logps[:, i, : len(r)] = r, lp
    whole = mr.exact.solve(reward, ref_logps, family(WEIGHTS), beta=0.3)
    for i, (r, lp) in enumerate(rows):
        single = mr.exact.solve(r, lp, family(WEIGHTS), beta=0.3)
        torch.testing.assert_close(whole.log_policy[i, : len(r)], single.log_policy, rtol=1e-13, atol=1e-13)
        assert (whole.log_policy[i, len(r) :] == -math.inf).all()
        torch.testing.assert_close(whole.value[i], single.value, rtol=1e-13, atol=1e-13)


@every_family
def test_one_reward_row_for_many_prompts(family):
    """reward [Y] broadcasts over ref_logps [K, B, Y]."""
    reward, ref_logps = problem(4, 6)
    shared = mr.exact.solve(reward[0], ref_logps, family(WEIGHTS), beta=0.3)
    expanded = mr.exact.solve(reward[0].expand(4, 6), ref_logps, family(WEIGHTS), beta=0.3)
    torch.testing.assert_close(shared.log_policy, expanded.log_policy, rtol=0, atol=0)
    torch.testing.assert_close(shared.value, expanded.value, rtol=0, atol=0)


@pytest.mark.parametrize("family", [*REGULARIZERS.values(), mr.FDivergence.jensen_shannon], ids=[*REGULARIZERS, "js"])
@pytest.mark.parametrize("rows", [3, 4])
def test_many_rows_under_one_prompt_s_references(family, rows):
    """References [K, Y] serve every row of [B, Y]: K is no batch, not even where B = K (3 here)."""
    reward, ref_logps = problem(rows, 5)
    refs, policy, rule = (
        ref_logps[:, 0],
        torch.linspace(-1, 1, rows * 5).double().view(rows, 5).sin().log_softmax(-1),
        family(WEIGHTS),
    )
    preference = torch.sigmoid(reward[..., :, None] - reward[..., None, :])

    def found(row):
        solution = mr.exact.solve(reward[row], refs, rule, beta=0.3)
        yield from (solution.policy, solution.value)
        yield mr.exact.value(solution.log_policy, reward[row], refs, rule, beta=0.3)
        yield mr.exact.nash(preference[row], refs, rule, beta=0.3).policy
        yield mr.exact.duality_gap(solution.log_policy, preference[row], refs, rule, beta=0.3)
        yield rule.penalty(solution.log_policy, refs)
        yield rule.implicit_reward(policy[row], refs, beta=0.3)
        yield from (
            each(policy[row], ref_logps[:, 0], WEIGHTS) for each in (mr.divergences.k1, mr.divergences.k2, mr.divergences.k3)
        )
        yield mr.divergences.forward_kl(policy[row], refs, WEIGHTS)

    for together, *single in zip(found(slice(None)), *(found(row) for row in range(rows)), strict=True):
        torch.testing.assert_close(together, torch.stack(single), rtol=1e-9, atol=1e-11, equal_nan=True)


@every_family
def test_weights_per_prompt(family):
    """Weights [K, B] weigh each row by its own column; [K, B, Y] with equal columns is the same."""
    reward, ref_logps = problem(4, 6)
    weights = torch.from_numpy(np.random.default_rng(0).dirichlet(np.ones(3), size=4).T.copy())
    whole = mr.exact.solve(reward, ref_logps, family(weights), beta=0.3)
    for i in range(4):
        single = mr.exact.solve(reward[i], ref_logps[:, i], family(tuple(weights[:, i].tolist())), beta=0.3)
        assert_row(whole, i, single)
    merged = mr.exact.merge(ref_logps.clamp_min(-50).log_softmax(-1), weights)
    assert merged.shape == (4, 6)


@pytest.mark.parametrize("family", [*REGULARIZERS.values(), mr.FDivergence.jensen_shannon], ids=[*REGULARIZERS, "js"])
def test_weights_per_prompt_never_weigh_completions(family):
    """[K, B] beside references [K, Y] that all prompts share: where B = Y they were taken for weights of completions."""
    reward, ref_logps = problem(3, 3)
    refs, rule = ref_logps[:, 0], family(torch.tensor([[0.2, 0.5, 0.3], [0.5, 0.3, 0.2], [0.3, 0.2, 0.5]]))
    policy = reward.log_softmax(-1)
    for call in (
        lambda: rule.penalty(policy, refs),
        lambda: rule.implicit_reward(policy, refs, beta=0.3),
        lambda: mr.exact.value(policy, reward, refs, rule, beta=0.3),
        lambda: mr.exact.solve(reward, refs, rule, beta=0.3),
        *((lambda each=each: each(policy, refs, rule.weights)) for each in (mr.divergences.k1, mr.divergences.k3)),
    ):
        with pytest.raises(mr.errors.WeightsError, match="does not match"):
            call()


@every_family
def test_weights_of_zero_in_some_rows(family):
    """A reference absent from one prompt and present in the next, veto and all."""
    reward, ref_logps = problem(4, 6, seed=2)
    ref_logps = ref_logps.clamp_min(-60).log_softmax(-1)
    ref_logps[0, :2, :5] = -math.inf
    weights = torch.tensor([[0.0, 0.0, 0.5, 0.2], [0.4, 1.0, 0.5, 0.3], [0.6, 0.0, 0.0, 0.5]], dtype=torch.float64)
    whole = mr.exact.solve(reward, ref_logps, family(weights), beta=0.3)
    for i in range(4):
        kept = weights[:, i] > 0
        assert_row(whole, i, mr.exact.solve(reward[i], ref_logps[kept, i], family(tuple(weights[kept, i].tolist())), beta=0.3))


@every_family
@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5)])
def test_no_rows(family, shape):
    """An empty batch has an empty solution."""
    reward, ref_logps = torch.zeros(shape, dtype=torch.float64), torch.zeros((2, *shape), dtype=torch.float64)
    preference = torch.zeros(*shape, shape[-1], dtype=torch.float64)
    for solution in (
        mr.exact.solve(reward, ref_logps, family(None), beta=0.3),
        mr.exact.nash(preference, ref_logps, family(None), beta=0.3),
    ):
        assert solution.log_policy.shape == shape and solution.value.shape == shape[:-1]
    assert mr.exact.duality_gap(reward, preference, ref_logps, family(None), beta=0.3).shape == shape[:-1]


@every_family
def test_one_completion(family):
    """Y = 1: the policy is certain, and its value is r − β Σ_k w_k D(1‖π_k) = r where every reference is certain too."""
    solution = mr.exact.solve(
        torch.tensor([1.5], dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64), family(WEIGHTS), beta=0.3
    )
    assert solution.log_policy.tolist() == pytest.approx([0.0], abs=1e-15)
    assert solution.value.item() == pytest.approx(1.5, abs=1e-15)


def test_a_solution_prints_on_one_line():
    solution = mr.exact.solve(*problem(3, 6), mr.AlphaDivergence(WEIGHTS, alpha=2.0), beta=0.3)
    assert "(3, 6)" in str(solution) and "3 prompts" in str(solution) and "\n" not in str(solution)
    torch.testing.assert_close(solution.policy, solution.log_policy.exp(), rtol=0, atol=0)


@every_family
def test_inputs_are_left_alone(family):
    reward, ref_logps = problem(3, 6)
    before = reward.clone(), ref_logps.clone()
    mr.exact.solve(reward, ref_logps, family(WEIGHTS), beta=0.3)
    assert torch.equal(reward, before[0]) and torch.equal(ref_logps, before[1])


@every_family
def test_single_precision_is_close(family):
    """float32 in, float32 out, close to the float64 answer where the problem is tame."""
    generator = torch.Generator().manual_seed(0)
    reward, logits = torch.randn(5, 6, generator=generator), torch.randn(3, 5, 6, generator=generator)
    exact = mr.exact.solve(reward.double(), logits.double().log_softmax(-1), family(WEIGHTS), beta=1.0)
    single = mr.exact.solve(reward, logits.log_softmax(-1), family(WEIGHTS), beta=1.0)
    assert single.log_policy.dtype == torch.float32
    torch.testing.assert_close(single.log_policy.exp().double(), exact.log_policy.exp(), rtol=0, atol=1e-5)
    torch.testing.assert_close(single.value.double(), exact.value, rtol=0, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@every_family
def test_on_an_accelerator(family):
    reward, ref_logps = problem(50, 9)
    here = mr.exact.solve(reward, ref_logps, family(WEIGHTS), beta=0.3)
    there = mr.exact.solve(reward.cuda(), ref_logps.cuda(), family(WEIGHTS), beta=0.3)
    assert there.log_policy.is_cuda and there.value.is_cuda
    torch.testing.assert_close(there.log_policy.exp().cpu(), here.log_policy.exp(), rtol=0, atol=1e-12)
    torch.testing.assert_close(there.value.cpu(), here.value, rtol=1e-12, atol=1e-12)
