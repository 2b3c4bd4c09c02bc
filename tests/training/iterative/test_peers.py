"""What each peer adds of its own: SAIL's extra gradient, XPO's optimism, GSHF's opponent, two stages."""

import pytest
import torch
from torch.nn.functional import logsigmoid

from multiref.training.iterative import GSHF, SAIL, XPO, Plan, State, TwoStage, train
from multiref.training.iterative.steps import ask, some_prompts
from multiref_lab.races import enumerable_world
from multiref_lab.toys import Size
from tests.training.iterative.test_gradients import BETA, PROMPTS, VOCABULARY, world

SMALL = {"size": Size(4, 3, 2, width=12, dimension=3), "beta": 0.5}


@pytest.mark.parametrize("design", ["PR", "PP"])
def test_the_extra_gradient_makes_the_derivative_whole(design):
    """With γ = 1 the online term is the whole derivative of −E_{pairs∼π, z}[log p_θ(z)], sampling law included;
    for PP the label's own law too."""
    task, _ = world(3000)
    method, state = SAIL(design, mixture=0.5, extra=1.0), State.begin(task, seed=3, learning_rate=1e-3, reward_rate=1e-3)
    x = some_prompts(task, 4 * PROMPTS, state.generator)
    ask(task, state, x, state.policy.sample(x, 2, state.generator))
    loss = method._online(task, state, Plan(labels=[1], batch=8 * PROMPTS))
    (found,) = torch.autograd.grad(loss.sum(), list(state.policy.parameters()))

    theta = state.policy.base.detach()[0].double().requires_grad_(True)
    logps = theta.log_softmax(-1)
    one = torch.arange(VOCABULARY)[None, None, :, None].expand(1, PROMPTS, -1, 1)
    reward = task.regularizer.implicit_reward(logps, task.ref_logps(torch.arange(PROMPTS), one)[:, 0].double(), beta=BETA)
    margin = reward.unsqueeze(-1) - reward.unsqueeze(-2)
    true = task.oracle.reward[0].double()
    wins = torch.sigmoid(true.unsqueeze(-1) - true.unsqueeze(-2)) if design == "PR" else torch.sigmoid(margin)
    value = wins * logsigmoid(margin) + (1 - wins) * logsigmoid(-margin)
    law = logps.exp().unsqueeze(-1) * logps.exp().unsqueeze(-2)
    (exact,) = torch.autograd.grad(-(law * value).sum((-1, -2)).mean(), theta)
    error = found.double().std(0) / 3000**0.5
    assert bool(((found.double().mean(0) - exact).abs() < 4.5 * error + 1e-5).all()), (found.mean(0), exact)


def test_optimism_turns_the_policy_away_from_where_it_started():
    """The same run with a large α: completions of the starting policy become less likely than without."""
    made, ends = enumerable_world(2, **SMALL), {}
    for optimism in (0.0, 0.3):
        plan = Plan(labels=[40, 80], steps=15, batch=32, learning_rate=5e-3)
        state, _ = train(made.task, XPO(optimism=optimism), plan)
        ends[optimism] = (made.task.policy.table().exp() * state.policy.table()).sum(-1).mean()
    assert float(ends[0.3]) < float(ends[0.0]) - 0.05


def test_the_opponent_is_the_one_that_labels_say_least_about():
    """Γ² = Δfᵀ (ridge + Σ Δf Δfᵀ)⁻¹ Δf, by hand for one prompt; the pair asked has the largest."""
    made = enumerable_world(1, **SMALL)
    state, asked = State.begin(made.task, seed=0, learning_rate=1e-3, reward_rate=1e-3), []
    method, good = GSHF(candidates=5), made.task.oracle

    def oracle(prompts, first, second, generator):
        asked.append((prompts, first, second))
        return good(prompts, first, second, generator)

    made.task.oracle = oracle
    plan = Plan(labels=[6, 12], steps=1, prompts=4, rollouts=2, reward_steps=1)
    method.round(made.task, state, 6, plan)
    past = state.reward.features(*state.labels.take(torch.arange(6)))[0]
    seen = past[:, 0] - past[:, 1]
    inverse = torch.linalg.inv(torch.eye(3) + seen.T @ seen)
    x = torch.tensor([2])
    y = state.policy.sample(x, 5, torch.Generator().manual_seed(4))
    features = state.reward.features(x, y)[0, 0]
    expected = torch.stack([(f - features[0]) @ inverse @ (f - features[0]) for f in features])
    assert torch.allclose(method._uncertainty(state, x, y)[0, 0], expected, atol=1e-5)
    state.generator.manual_seed(9)
    method.round(made.task, state, 6, plan)
    state.generator.manual_seed(9)
    x = some_prompts(made.task, 6, state.generator)
    prompts, _, second = asked[-1]
    assert torch.equal(prompts, x) and second.shape == (1, 6, 2)


def test_two_stages_draw_from_the_start_and_then_from_one_fixed_policy():
    made = enumerable_world(1, **SMALL)
    sampled: list[object] = []
    plan = Plan(labels=[10, 20, 30, 40], steps=3, prompts=4, rollouts=2, reward_steps=2, learning_rate=1e-2)
    method, state = TwoStage(first_stage=0.5), State.begin(made.task, seed=0, learning_rate=1e-2, reward_rate=1e-2)

    def watch(policy, name):
        plain = policy.sample

        def sample(prompts, n, generator):
            if n == 2 and len(prompts) == 10:
                sampled.append(name)
            return plain(prompts, n, generator)

        policy.sample = sample

    watch(state.start, "start")
    for _ in range(2):
        method.round(made.task, state, 10, plan)
    assert state.middle is None and sampled == ["start", "start"]
    method.round(made.task, state, 10, plan)
    kept = state.middle.table()
    watch(state.middle, "middle")
    method.round(made.task, state, 10, plan)
    assert sampled == ["start", "start", "middle"] and torch.equal(state.middle.table(), kept)
    assert not torch.equal(state.policy.table(), kept)
