"""The outer step by online Newton: its first step by hand, maximum likelihood on all labels after many,
and no dependence on the features' units."""

import pytest
import torch

from multiref.errors import ArgumentError
from multiref.training.iterative import Bilevel, Plan, train
from multiref_lab.races import enumerable_world
from multiref_lab.toys import LinearReward, Size

SMALL = {"size": Size(6, 3, 2, width=12, dimension=3), "beta": 0.5}
RIDGE = 2.0


def run(labels, *, scale=1.0, ridge=RIDGE, seeds=2):
    """φ [S, d] after training, and all pairs asked: differences of features [S, N, d] and answers [S, N];
    features in other units where asked."""
    made = enumerable_world(seeds, **SMALL)
    made.task.reward_model = LinearReward(scale * made.task.reward_model.table, 3, seeds)
    good, moves, answers = made.task.oracle, [], []

    def oracle(prompts, first, second, generator):
        answered = good(prompts, first, second, generator)
        f = made.task.reward_model.features
        moves.append((f(prompts, first[:, :, None]) - f(prompts, second[:, :, None]))[:, :, 0])
        answers.append(answered)
        return answered

    made.task.oracle = oracle
    plan = Plan(labels=labels, steps=2, prompts=6, rollouts=2, learning_rate=1e-3)
    state, _ = train(made.task, Bilevel("stop_gradient", outer="newton", ridge=ridge), plan)
    return state.reward.phi.detach(), torch.cat(moves, 1), torch.cat(answers, 1)


def test_the_first_step_is_newtons_from_zero():
    """At φ = 0 every p is ½: A = ridge + ¼ Σ Δf Δfᵀ, φ = A⁻¹ Σ (z − ½) Δf."""
    phi, move, answered = run([24])
    for s in range(2):
        information = RIDGE * torch.eye(3) + 0.25 * move[s].T @ move[s]
        pull = ((answered[s] - 0.5)[:, None] * move[s]).sum(0)
        assert torch.allclose(phi[s], torch.linalg.inv(information) @ pull, atol=1e-5)


def test_one_pass_is_maximum_likelihood_on_all_labels():
    """Off the ridge-penalised maximum of all 3,000 labels by less than a fifth of that maximum's own standard error,
    in its Fisher metric."""
    phi, move, answered = run(range(60, 3001, 60))
    move, answered = move.double(), answered.double()
    for s in range(2):
        best = torch.zeros(3, dtype=torch.float64)
        for _ in range(30):
            p = torch.sigmoid(move[s] @ best)
            fisher = RIDGE * torch.eye(3) + (move[s].T * (p * (1 - p))) @ move[s]
            best = best + torch.linalg.solve(fisher, move[s].T @ (answered[s] - p) - RIDGE * best)
        off = phi[s].double() - best
        assert float((off @ fisher @ off).sqrt()) < 0.2 * 3**0.5
        assert float((best @ fisher @ best).sqrt()) > 5  # not zero: there was something to find


def test_units_of_the_features_do_not_matter():
    """Features ten times as large with a ridge a hundred times as large: the same reward function, the same labels,
    the same run."""
    phi, _, answered = run(range(60, 601, 60))
    tenfold, _, again = run(range(60, 601, 60), scale=10.0, ridge=100 * RIDGE)
    assert torch.equal(answered, again)
    assert torch.allclose(10 * tenfold, phi, atol=1e-4)


def test_refused_where_it_cannot_be():
    for objective in ("likelihood", "debiased", "win_rate"):
        with pytest.raises(ArgumentError, match="adam for all but stop_gradient"):
            Bilevel(objective, outer="newton")
    with pytest.raises(ArgumentError, match="ridge"):
        Bilevel("stop_gradient", outer="newton", ridge=0.0)
    made = enumerable_world(1, reward_model="transformer", **SMALL)
    with pytest.raises(ArgumentError, match="TransformerReward"):
        train(made.task, Bilevel("stop_gradient", outer="newton"), Plan(labels=[12], steps=1, prompts=6, rollouts=2))
