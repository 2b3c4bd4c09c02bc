"""The price of a label: sums by hand, and rewards fitted to pairs of the optimum, which pay it."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from multiref import exact
from multiref_lab.races import enumerable_world, price_of_labels
from multiref_lab.toys import LinearReward, Size, TabularPolicy

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


def test_what_a_race_measures_against_loops(world):
    """Gap, KL to each reference, win rate over the first one and how far the reward misleads, at any policy and reward."""
    generator = torch.Generator().manual_seed(1)
    policy = TabularPolicy(torch.randn(2, 4, 9, generator=generator).log_softmax(-1), 3, 2, 2)
    learnt = LinearReward(world.features, 3, 2)
    learnt.phi.data = torch.randn(2, 3, generator=generator)
    found = world.task.measure(SimpleNamespace(policy=policy, reward=learnt))
    for w in range(2):
        sums = dict.fromkeys(("gap", "kl/reference 0", "kl/reference 1", "win rate", "variance"), 0.0)
        for x in range(4):
            log_p, refs, r = policy.table()[w, x], world.ref_table[:, w, x], world.reward[w, x].double()
            p, error = log_p.exp(), (world.features[w, x] @ learnt.phi[w].detach()).double() - r
            sums["gap"] += 0.5 * float((p * (log_p - world.best[w, x])).sum()) / 4
            for k in range(2):
                sums[f"kl/reference {k}"] += float((p * (log_p - refs[k])).sum()) / 4
            for y, other in itertools.product(range(9), repeat=2):
                sums["win rate"] += float(p[y] * refs[0, other].exp() * torch.sigmoid(r[y] - r[other])) / 4
            sums["variance"] += float((p * error**2).sum() - (p * error).sum() ** 2) / 4
        misled = sums.pop("variance") ** 0.5
        assert {name: float(found[name][w]) for name in sums} == pytest.approx(sums, rel=1e-5)
        assert float(found["reward error here"][w].detach()) == pytest.approx(misled, rel=1e-5)


def test_features_are_centred_and_a_log_linear_policy_holds_the_optimum():
    """Features have mean 0 at each prompt and variance 1; log π* − log π_1 is linear in them and the references' log-ratio."""
    made = enumerable_world(2, SIZE, worlds=2, policy="log-linear")
    torch.testing.assert_close(made.features.mean(2), torch.zeros(2, 4, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(made.features.std((1, 2)), torch.ones(2, 3), atol=1e-5, rtol=0)
    base, seen = made.task.policy.base.double(), made.task.policy.features.double()
    wanted = made.best - base
    wanted, seen = (wanted - wanted.mean(-1, keepdim=True)).flatten(1), (seen - seen.mean(-2, keepdim=True)).flatten(1, 2)
    left = wanted - (seen @ torch.linalg.lstsq(seen, wanted.unsqueeze(-1)).solution)[..., 0]
    assert wanted.abs().max() > 0.1 and left.abs().max() < 1e-4


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
