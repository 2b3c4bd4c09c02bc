"""The price of a label: sums by hand, and rewards fitted to pairs of the optimum, which pay it."""

import pytest
import torch

from multiref import exact
from multiref_lab.races import enumerable_world, price_of_labels
from multiref_lab.toys import Size

SIZE = Size(4, 3, 2, width=12, dimension=3)


@pytest.fixture(scope="module")
def world():
    return enumerable_world(2, SIZE, worlds=2)


def test_against_loops(world):
    for w in range(2):
        spread = information = torch.zeros(3, 3, dtype=torch.float64)
        for x in range(4):
            f = world.features[w, x].double()
            p, r = world.best[w, x].exp(), world.reward[w, x].double()
            mean = sum(p[y] * f[y] for y in range(9))
            for y in range(9):
                spread = spread + p[y] * torch.outer(f[y] - mean, f[y] - mean)
                for other in range(9):
                    won = 1 / (1 + torch.exp(r[other] - r[y]))
                    move = f[y] - f[other]
                    information = information + p[y] * p[other] * won * (1 - won) * torch.outer(move, move)
        expected = torch.trace(spread @ torch.linalg.inv(information)) / (2 * 0.5)
        assert float(price_of_labels(world)[w]) == pytest.approx(float(expected), rel=1e-9)
    assert bool((price_of_labels(world) > 3 / 0.5).all())  # d/β


def test_maximum_likelihood_on_pairs_of_the_optimum_pays_it(world):
    """400 fits to 4,000 pairs each, by Newton: the mean gap times n is the price within a tenth (its standard error is 4 %)."""
    seeds, n = 400, 4_000
    generator = torch.Generator().manual_seed(0)
    law, reward, features = world.best[0].exp(), world.reward[0].double(), world.features[0].double()
    x = torch.randint(4, (seeds, n), generator=generator)
    y, other = torch.multinomial(law[x.flatten()], 2, replacement=True, generator=generator).T.reshape(2, seeds, n)
    won = torch.rand(seeds, n, generator=generator, dtype=torch.float64) < torch.sigmoid(reward[x, y] - reward[x, other])
    move = features[x, y] - features[x, other]
    phi = torch.zeros(seeds, 3, dtype=torch.float64)
    for _ in range(12):
        p = torch.sigmoid(torch.einsum("snd,sd->sn", move, phi))
        slope = torch.einsum("sn,snd->sd", won.double() - p, move)
        phi += torch.linalg.solve(torch.einsum("sn,snd,sne->sde", p * (1 - p), move, move), slope)
    learnt = torch.einsum("xyd,sd->sxy", features, phi)
    tables = world.ref_table[:, :1].expand(-1, seeds, -1, -1)
    policy = exact.solve(learnt, tables, world.task.regularizer, beta=0.5).log_policy
    gaps = 0.5 * (policy.exp() * (policy - world.best[0])).sum(-1).mean(-1)
    assert n * float(gaps.mean()) == pytest.approx(float(price_of_labels(world)[0]), rel=0.1)
