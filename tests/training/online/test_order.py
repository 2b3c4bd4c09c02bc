"""Which prompts a step takes."""

from multiref.training.online.loop import prompts_of


def test_every_epoch_is_a_permutation_of_its_own():
    places = prompts_of(0, 21, 7, seed=3)
    epochs = [places[0:7], places[7:14], places[14:21]]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and places != prompts_of(0, 21, 7, seed=4)


def test_steps_and_processes_share_one_order():
    """Whatever the size of a share, and across the end of an epoch: joined they are the same sequence."""
    whole = prompts_of(0, 24, 5, seed=0)
    for size in (1, 2, 3, 4, 6, 8, 12):
        assert [i for first in range(0, 24, size) for i in prompts_of(first, size, 5, seed=0)] == whole
