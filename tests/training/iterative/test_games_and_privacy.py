"""Nash as a method, private labels as an oracle, and which pairs the second stage buys."""

import contextlib
import math

import pytest
import torch

import multiref as mr
from multiref.errors import ArgumentError, StoreError
from multiref.training.iterative import Nash, PairwiseRewardModel, Plan, PrivateOracle, TwoStage, method_named, train
from multiref_lab.races import enumerable_world
from multiref_lab.toys import Size, at

SMALL = {"size": Size(4, 3, 2, width=12, dimension=4), "beta": 0.3}


class CyclicOracle:
    """P(y ≻ y') = σ(φᵀΘφ'), Θ skew, on the world's features: no reward explains it."""

    def __init__(self, features, scale=3.0):
        draw = torch.randn(features.shape[-1], features.shape[-1], generator=torch.Generator().manual_seed(5))
        self.features, self.skew = features, scale * (draw - draw.T) / features.shape[-1]

    def preference(self):
        f = self.features[0].double()
        return torch.sigmoid(f @ self.skew.double() @ f.mT)

    def __call__(self, prompts, first, second, generator):
        both = [at(self.features, prompts, each.unsqueeze(-2), 3)[..., 0, :] for each in (first, second)]
        return torch.bernoulli(
            torch.sigmoid(torch.einsum("...d,de,...e->...", both[0], self.skew, both[1])), generator=generator
        )


@pytest.mark.parametrize("design", ["own", pytest.param("greedy", marks=pytest.mark.slow)])
def test_a_table_learns_a_cyclic_game_and_a_reward_cannot(design):
    """The exact gap falls to a fifth of the start's; iterated Bradley–Terry on the same labels stays above twice that."""
    gaps = {}
    for method in (Nash(design), method_named("iterative")):
        made = enumerable_world(1, policy="tabular", **SMALL)
        oracle = made.task.oracle = CyclicOracle(made.features)

        def gap(table, oracle=oracle, made=made):
            refs = made.ref_table[:, 0].double()
            return float(
                mr.exact.duality_gap(table[0].double(), oracle.preference(), refs, made.task.regularizer, beta=0.3).mean()
            )

        before = gap(made.task.policy.table())
        plan = Plan(labels=[1500, 3000], steps=70, prompts=16, rollouts=16, reward_steps=80, reward_batch=4096,
                    learning_rate=5e-2, final_rate=0.1, measure_at=())  # fmt: skip
        state, history = train(made.task, method, plan)
        gaps[method.name] = gap(state.policy.table())
        assert ("reward error here" in history.lines[0]) != isinstance(method, Nash)
    nash, reward = gaps.values()
    assert nash < 0.2 * before and reward > 2 * nash, (before, gaps)


def test_a_pairwise_reward_gives_shares_of_wins():
    """s is skew: shares of a group of n sum to n/2; a group of one is a tie."""
    model = PairwiseRewardModel(lambda x, y: y.float(), torch.Size([3]))
    with torch.no_grad():
        model.theta.copy_(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))
    y = torch.randint(0, 9, (2, 4, 3), generator=torch.Generator().manual_seed(1))
    wins = model(torch.arange(2), y).detach()
    assert wins.sum(-1).tolist() == pytest.approx([2.0, 2.0], abs=1e-6) and float(wins.std()) > 0.01
    assert model(torch.arange(2), y[:, :1]).flatten().tolist() == pytest.approx([0.5, 0.5])


def test_nash_needs_features_and_a_known_design():
    made = enumerable_world(1, reward_model="transformer", **SMALL)
    with pytest.raises(ArgumentError, match="linear in `features`"):
        train(made.task, Nash(), Plan(labels=[4]))
    with pytest.raises(ArgumentError, match="design"):
        Nash("both")


def test_nash_resumes(tmp_path):
    made = enumerable_world(2, **SMALL)
    quick = {"steps": 2, "prompts": 4, "rollouts": 2, "reward_steps": 3}
    whole, _ = train(made.task, Nash(), Plan(labels=[8, 16], **quick), folder=tmp_path / "whole")
    train(made.task, Nash(), Plan(labels=[8], **quick), folder=tmp_path / "half")
    again, _ = train(made.task, Nash(), Plan(labels=[8, 16], **quick), folder=tmp_path / "half")
    assert torch.equal(whole.policy.table(), again.policy.table()) and torch.equal(whole.reward.theta, again.reward.theta)


@pytest.mark.parametrize("simulate", [True, False])
def test_a_private_oracle_flips_at_its_rate(simulate):
    def always(prompts, first, second, generator):
        return torch.ones(first.shape[:-1])

    oracle = PrivateOracle(always, 1.0, simulate=simulate)
    answers = oracle(torch.arange(20_000), torch.zeros(20_000, 2), torch.zeros(20_000, 2), torch.Generator().manual_seed(0))
    rate = 1 / (1 + math.e)
    assert abs(float((answers == 0).double().mean()) - rate) < 4 * math.sqrt(rate * (1 - rate) / 20_000)


def test_private_labels_are_fitted_by_their_likelihood():
    """60,000 labels at ε = 1: the learnt reward is within 0.35 of the truth; the plain loss would leave it shrunk to half."""
    made = enumerable_world(1, policy="tabular", **SMALL)
    made.task.oracle = PrivateOracle(made.task.oracle, 1.0, simulate=True)
    plan = Plan(labels=[60_000], steps=1, prompts=2, rollouts=2, reward_steps=150, reward_batch=60_000, reward_rate=5e-2)
    _, history = train(made.task, method_named("two-stage"), plan)
    assert history.lines[-1]["reward error at start"][0] < 0.2 * history.lines[0]["reward error at start"][0]


def test_a_run_goes_on_at_the_privacy_that_its_labels_were_flipped_at(tmp_path):
    """The loss takes the flips of all labels into account, those of the rounds before too."""
    plan, made = {"steps": 1, "prompts": 2, "rollouts": 2, "reward_steps": 1}, enumerable_world(1, **SMALL)
    asked = made.task.oracle
    for labels, epsilon in (([4], 1.0), ([4, 8], 1.0), ([4, 8, 12], 3.0)):
        made.task.oracle = PrivateOracle(asked, epsilon, simulate=True)
        refused = pytest.raises(StoreError, match=r"epsilon: the checkpoint was written under 1.0, found 3.0")
        with refused if epsilon > 1 else contextlib.nullcontext():
            train(made.task, method_named("iterative"), Plan(labels=labels, **plan), folder=tmp_path)


def test_methods_with_losses_of_their_own_refuse_private_labels():
    made = enumerable_world(1, **SMALL)
    made.task.oracle = PrivateOracle(made.task.oracle, 1.0)
    for name in ("sail", "bilevel"):
        with pytest.raises(ArgumentError, match="PrivateOracle"):
            train(made.task, method_named(name), Plan(labels=[4]))
    with pytest.raises(ArgumentError, match="private already"):
        PrivateOracle(made.task.oracle, 1.0)
    with pytest.raises(ArgumentError, match="epsilon"):
        PrivateOracle(made.task.oracle.oracle, 0.0)


def test_the_second_stage_buys_what_it_says():
    """A tabular policy trained away from its start: the rejected side's law tells which policy it came from."""
    bought = {}
    for pairs in ("own", "mixed"):
        made = enumerable_world(1, policy="tabular", **SMALL)
        plan = Plan(labels=[1000, 4000], steps=60, prompts=16, rollouts=16, learning_rate=2e-1, reward_steps=60)
        state, _ = train(made.task, TwoStage(pairs=pairs), plan)
        x, late = state.labels.take(torch.arange(1000, 4000))
        middle, start = (each.logps(x, late).detach() for each in (state.middle, state.start))
        bought[pairs] = float((middle - start).sum(-1).mean())
    assert bought["own"] > 1.3 * bought["mixed"]
    with pytest.raises(ArgumentError, match="pairs"):
        TwoStage(pairs="both")
