"""The many-seeds transformer is S transformers; its table is its probabilities; its samples follow them."""

import torch

from multiref_lab.toys import BatchedTransformer, Size, TransformerReward


def model(seeds=2, **options):
    return BatchedTransformer(seeds, Size(3, 3, 3, width=8), generator=torch.Generator().manual_seed(0), **options)


def every_completion():
    return torch.cartesian_prod(*[torch.arange(3)] * 3)


def test_table_holds_distributions_and_agrees_with_logps():
    policy = model(layers=2)
    table = policy.table()
    assert torch.allclose(table.exp().sum(-1), torch.ones(2, 3).double(), atol=1e-6)
    answers = every_completion().expand(2, 3, 27, 3)
    assert torch.allclose(policy.logps(torch.arange(3), answers).double(), table, atol=1e-5)


def test_seeds_do_not_touch_each_other():
    policy = model()
    before = policy.table()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter[1] *= 1.3  # adding a number would be undone by the normalisations
    after = policy.table()
    assert torch.equal(before[0], after[0]) and not torch.allclose(before[1], after[1])


def test_causal():
    """The law of the first token does not depend on what follows: marginals of the table are the first step's softmax."""
    policy = model()
    first = policy.table().exp().view(2, 3, 3, 9).sum(-1)
    start = (3 + torch.arange(3))[None, :, None].expand(2, 3, 1)
    assert torch.allclose(first, policy.logits(start)[:, :, 0].softmax(-1).double(), atol=1e-6)


def test_samples_follow_the_table():
    policy = model()
    drawn = policy.sample(torch.arange(3), 20_000, torch.Generator().manual_seed(1))
    index = (drawn * torch.tensor([9, 3, 1])).sum(-1)
    counted = torch.zeros(2, 3, 27).scatter_add_(-1, index, torch.ones(index.shape)) / 20_000
    error = (policy.table().exp() / 20_000).sqrt()
    assert bool(((counted - policy.table().exp()).abs() < 5 * error + 1e-4).all())


def test_a_reward_reads_the_whole_completion_and_nothing_else():
    """Zero at first; then a function of prompt and completion alone: not of the other rows, different at each completion,
    one per seed.
    """
    reward = TransformerReward(2, Size(3, 3, 3, width=8), generator=torch.Generator().manual_seed(0))
    y = every_completion().expand(2, 3, 27, 3)
    with torch.no_grad():
        assert bool((reward(torch.arange(3), y) == 0).all())
        reward.body.head += torch.randn(2, 8, 1, generator=torch.Generator().manual_seed(1))
        whole = reward(torch.arange(3), y)
        assert torch.allclose(reward(torch.tensor([2]), y[:, :1, 5:6])[:, 0, 0], whole[:, 2, 5], atol=1e-6)
    assert whole.shape == (2, 3, 27) and len(whole.flatten().unique()) == 2 * 3 * 27
