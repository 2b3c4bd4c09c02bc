"""Which pairs go together: every pair once an epoch, another order in each, as many batches on every rank,
a budget that is kept."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multiref.errors import ArgumentError
from multiref.models import Encoded
from multiref.training.batching import StepBatches, cut_into_microbatches, merge_pairs
from multiref.training.dataset import PairBatch
from tests.conftest import make_llama

LENGTHS = [(7 * n) % 23 + 1 for n in range(23)]


@settings(max_examples=60, deadline=None)
@given(pairs=st.integers(1, 40), per_device=st.integers(1, 5), accumulation=st.integers(1, 4), world=st.integers(1, 4))
def test_every_pair_counts_once_and_ranks_keep_step(pairs, per_device, accumulation, world):
    """Over all ranks each index occurs once at or above zero; all ranks have len(sampler) batches,
    none is empty or above per_device."""
    lengths = [(7 * n) % 23 + 1 for n in range(pairs)]
    ranks = [
        list(StepBatches(lengths, per_device, accumulation=accumulation, world=world, rank=r, seed=3)) for r in range(world)
    ]
    assert sorted(i for batches in ranks for batch in batches for i in batch if i >= 0) == list(range(pairs))
    sampler = StepBatches(lengths, per_device, accumulation=accumulation, world=world)
    assert {len(batches) for batches in ranks} == {len(sampler)}
    assert all(1 <= len(batch) <= per_device for batches in ranks for batch in batches)


def test_a_step_is_the_same_set_however_it_is_cut():
    """8 pairs a step: on one rank at once, in 4 micro-batches, or on 2 ranks in 2; so training differs by rounding only."""

    def steps(per_device, accumulation, world):
        ranks = [
            list(StepBatches(LENGTHS, per_device, accumulation=accumulation, world=world, rank=r, seed=1)) for r in range(world)
        ]
        count = len(ranks[0]) // accumulation + bool(len(ranks[0]) % accumulation)
        return [
            sorted(
                i for batches in ranks for batch in batches[s * accumulation : (s + 1) * accumulation] for i in batch if i >= 0
            )
            for s in range(count)
        ]

    assert steps(8, 1, 1) == steps(2, 4, 1) == steps(2, 2, 2)


def test_epochs_differ_and_the_same_epoch_does_not():
    sampler = StepBatches(LENGTHS, 4, seed=5)
    first, again = list(sampler), list(sampler)
    sampler.set_epoch(1)
    assert first == again and list(sampler) != first
    assert list(StepBatches(LENGTHS, 4, seed=6)) != first


def test_without_shuffling_the_order_is_that_of_the_data_and_the_rest_may_be_dropped():
    assert list(StepBatches(LENGTHS, 10, shuffle=False)) == [list(range(10)), list(range(10, 20)), [20, 21, 22]]
    assert list(StepBatches(LENGTHS, 10, shuffle=False, drop_last=True)) == [list(range(10)), list(range(10, 20))]
    with pytest.raises(ArgumentError, match="drop_last"):
        StepBatches(LENGTHS, 24, drop_last=True)


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=30), budget=st.integers(1, 200))
def test_passes_keep_the_budget_and_lose_nothing(lengths, budget):
    """rows × longest row ≤ budget, but for a row that alone is above it."""
    groups = cut_into_microbatches(lengths, budget)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert all(len(group) == 1 or len(group) * max(lengths[i] for i in group) <= budget for group in groups)
    more = cut_into_microbatches(lengths, budget, at_least=min(len(lengths), len(groups) + 2))
    assert len(more) >= min(len(lengths), len(groups) + 2) and sorted(i for g in more for i in g) == list(range(len(lengths)))


@settings(max_examples=60, deadline=None)
@given(
    pairs=st.lists(
        st.tuples(st.integers(0, 2), st.lists(st.integers(0, 4), min_size=2, max_size=2, unique=True)), min_size=1, max_size=12
    )
)
def test_merged_pairs_have_each_completion_once_and_lose_none(pairs):
    """The places lead from every completion of every pair to the same ids behind the same prompt."""
    texts = [((prompt,), tuple((10 + c,) * (c + 1) for c in sides)) for prompt, sides in pairs]
    encoded = [Encoded(prompt, sides, (False, False)) for prompt, sides in texts]
    rows, members, places = merge_pairs(encoded)
    there = [(row.prompt_ids, ids) for row in rows for ids in row.completions]
    assert len(set(there)) == len(there) and len(rows) == len({prompt for prompt, _ in texts})
    assert [there[place] for place in places] == [(prompt, ids) for prompt, sides in texts for ids in sides]
    assert sorted(i for row in members for i in row) == list(range(len(pairs)))


def test_a_ranking_costs_each_completion_once_and_moves_the_same_gradient():
    """Six pairs of four completions: one row of four; loss and gradient are those of the pairs one by one."""
    torch.manual_seed(0)
    model = make_llama(40).double().eval()
    said = [(5, 6, 7), (8, 9), (10, 11, 12, 13), (14,)]
    encoded = tuple(Encoded((1, 2, 3), pair, (False, False)) for pair in itertools.combinations(said, 2))
    seen, hook = (
        [],
        model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True),
    )

    def gradient(batches):
        model.zero_grad()
        for batch in batches:
            zeros = torch.zeros(1, len(batch), 2, dtype=torch.float64)
            policy = PairBatch(batch, zeros, zeros.long(), torch.ones(len(batch))).logps(model).policy
            (policy[:, 0] - policy[:, 1]).sigmoid().log().sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    alone = gradient([(pair,) for pair in encoded])
    seen.clear()
    assert (gradient([encoded]) - alone).abs().max() <= 1e-5  # transformers' norms are in float32
    hook.remove()
    assert seen[-1] == 3 + sum(map(len, said))
