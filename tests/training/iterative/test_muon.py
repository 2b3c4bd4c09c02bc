"""Muon with seeds side by side: the orthogonal factor against an SVD, each seed against torch's own Muon,
and the optimum that it trains to."""

import pytest
import torch

from multiref.errors import ArgumentError, StoreError
from multiref.training.iterative import Plan, State, TextPolicy, TextWorld, method_named, train
from multiref.training.iterative.muon import Muon, orthogonal
from multiref.training.iterative.steps import improve
from multiref_lab.races import enumerable_world
from multiref_lab.toys import BatchedTransformer, Size, at
from tests.conftest import make_llama, make_tokenizer

SMALL = {"size": Size(4, 3, 2, width=12, dimension=3), "beta": 0.5}


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 24, 8), (2, 3, 8, 24), (5, 7)])
def test_orthogonal_keeps_the_singular_vectors_and_levels_the_values(shape):
    matrix = drawn(*shape).double()
    u, values, vt = torch.linalg.svd(matrix, full_matrices=False)
    turned = u.mT @ orthogonal(matrix) @ vt.mT
    levelled = turned.diagonal(dim1=-2, dim2=-1)
    assert torch.allclose(turned, torch.diag_embed(levelled), atol=1e-10)
    there = values > 1e-2 * matrix.norm(dim=(-2, -1))[..., None]
    assert bool(((levelled > 0.6) & (levelled < 1.25))[there].all())


def test_orthogonal_of_nothing_is_nothing():
    assert torch.equal(orthogonal(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


def test_each_seed_moves_as_under_the_muon_of_torch_and_the_rest_as_under_adam():
    """torch's takes one matrix at a time and works in bfloat16, hence the tolerance; Adam's part is Adam's to the bit."""
    seeds, start, bias = 3, drawn(3, 6, 10), drawn(3, 4, seed=1)
    matrix, other = torch.nn.Parameter(start.clone()), torch.nn.Parameter(bias.clone())
    ours = Muon([matrix], [other], lr=0.05, momentum=0.8)
    alone = [torch.nn.Parameter(start[s].clone()) for s in range(seeds)]
    theirs = torch.optim.Muon(alone, lr=0.05, momentum=0.8, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    plain = torch.nn.Parameter(bias.clone())
    adam = torch.optim.Adam([plain], lr=0.05, betas=(0.9, 0.99))
    for step in range(6):
        slope, push = drawn(3, 6, 10, seed=10 + step), drawn(3, 4, seed=20 + step)
        matrix.grad, other.grad, plain.grad = slope.clone(), push.clone(), push.clone()
        for s in range(seeds):
            alone[s].grad = slope[s].clone()
        for optimizer in (ours, theirs, adam):
            optimizer.step()
    assert torch.equal(other, plain)
    moved, expected = matrix.detach() - start, torch.stack([p.detach() for p in alone]) - start
    assert float((moved - expected).norm() / expected.norm()) < 0.02
    ours.param_groups[0]["lr"] = 0.0  # as the loop sets it: for both kinds
    before = matrix.detach().clone(), other.detach().clone()
    ours.step()
    assert torch.equal(matrix, before[0]) and torch.equal(other, before[1])
    ours.zero_grad()
    assert matrix.grad is None and other.grad is None


def test_a_transformer_under_the_true_reward_reaches_the_optimum():
    made = enumerable_world(2, **SMALL)
    task, reward = made.task, made.reward
    state = State.begin(task, seed=0, learning_rate=4e-2, reward_rate=1e-2, optimizer="muon")
    first = made.gap(state.policy.table())
    for share in (1.0, 0.3, 0.1, 0.03):
        state.optimizer.param_groups[0]["lr"] = 4e-2 * share
        improve(task, state, lambda x, y: at(reward, x, y, 3), steps=100, prompts=4, rollouts=16)
    assert bool((made.gap(state.policy.table()) < 2e-3 * first).all())


def test_a_state_of_another_optimizer_is_refused(tmp_path):
    plan = {"labels": [8], "steps": 1, "prompts": 4, "rollouts": 2, "reward_steps": 1}
    train(enumerable_world(2, **SMALL).task, method_named("iterative"), Plan(**plan), folder=tmp_path)
    with pytest.raises(StoreError, match="resumed"):
        train(enumerable_world(2, **SMALL).task, method_named("iterative"), Plan(**plan, optimizer="muon"), folder=tmp_path)


def test_a_policy_without_hidden_matrices_is_refused():
    with pytest.raises(ArgumentError, match="LogLinearPolicy"):
        State.begin(
            enumerable_world(2, policy="log-linear", **SMALL).task, seed=0, learning_rate=1, reward_rate=1, optimizer="muon"
        )


def test_the_matrices_of_a_seeded_transformer_are_neither_embeddings_nor_head():
    policy = BatchedTransformer(2, Size(3, 3, 2, width=8), layers=2, generator=torch.Generator().manual_seed(0))
    hidden = {id(p) for p in policy.matrices()}
    names = {name for name, p in policy.named_parameters() if id(p) not in hidden}
    assert names == {"embedding", "position", "head"} and len(hidden) == 8


def test_the_matrices_of_a_text_policy_are_neither_embeddings_nor_head():
    tokenizer = make_tokenizer()
    model = make_llama(len(tokenizer), seed=0)
    policy = TextPolicy(TextWorld(["the cat"], tokenizer, max_new_tokens=2), model)
    hidden = {id(p) for p in policy.matrices()}
    names = {name for name, p in model.named_parameters() if id(p) in hidden}
    assert names == {name for name, p in model.named_parameters() if "proj" in name}
