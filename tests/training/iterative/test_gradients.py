"""The outer step's estimate against the closed form: a tabular policy that is the Gibbs policy of its reward, one world,
many seeds as repeats."""

import pytest
import torch

import multiref as mr
from multiref.bilevel import Problem, hypergradient, preference_table
from multiref.training.iterative import Bilevel, Plan, State, Task, train
from multiref_lab.toys import LinearReward, TableOracle, TabularPolicy
from tests.bilevel.uppers import UPPERS

SEEDS, PROMPTS, VOCABULARY, BETA = 4000, 3, 4, 0.5


def world(seeds=SEEDS):
    """A task in which the policy already is π_φ (one token), and the same problem with everything summed."""
    generator = torch.Generator().manual_seed(5)
    refs = torch.randn(2, PROMPTS, VOCABULARY, generator=generator).log_softmax(-1)
    true = torch.randn(PROMPTS, VOCABULARY, generator=generator)
    features = torch.randn(PROMPTS, VOCABULARY, 3, generator=generator)
    phi = torch.tensor([0.6, -0.4, 0.3])
    regularizer = mr.ReverseKL((0.7, 0.3))
    model = LinearReward(features, VOCABULARY, seeds)
    model.phi.data[:] = phi
    policy = mr.exact.solve(features @ phi, refs, regularizer, beta=BETA).log_policy
    problem = Problem(preference_table(true).double(), refs.double(), regularizer, BETA, policy.double())

    def ref_logps(x, y):
        return refs[:, x[None, :, None], y[..., 0]]

    task = Task(
        PROMPTS,
        TabularPolicy(policy, VOCABULARY, 1, seeds),
        ref_logps,
        regularizer,
        BETA,
        TableOracle(true, VOCABULARY),
        model,
    )
    exact = {
        name: torch.einsum("xy,xyd->d", hypergradient(problem, (features @ phi).double(), UPPERS[name]), features.double())
        / PROMPTS
        for name in ("likelihood", "stop_gradient", "debiased", "win_rate")
    }
    return task, exact


def estimates(method, *, rollouts=8):
    task, exact = world()
    state = State.begin(task, seed=1, learning_rate=1e-3, reward_rate=1e-3)
    units = method._units(task, state, method.pairs * PROMPTS * (2 if method.objective == "debiased" else 1))
    plan = Plan(labels=[1], rollouts=rollouts)
    (gradient,) = method._gradient(task, state, units, method.sigma, plan)
    return gradient.double(), exact[method.objective]


@pytest.mark.parametrize(
    ("options", "bias"),
    [
        ({"objective": "stop_gradient"}, 0.0),
        ({"objective": "likelihood", "estimator": "covariance", "pairs": 3}, 0.0),
        ({"objective": "debiased", "estimator": "covariance", "pairs": 3}, 0.0),
        ({"objective": "win_rate", "estimator": "covariance", "pairs": 3}, 0.0),
    ],
)
def test_the_estimate_is_unbiased(options, bias):
    """The mean of 4,000 outer steps within 4.5 standard errors of the sum over everything."""
    found, exact = estimates(Bilevel(**options))
    error = found.std(0) / SEEDS**0.5
    assert bool(((found.mean(0) - exact).abs() < 4.5 * error + bias).all()), (found.mean(0), exact, error)


@pytest.mark.parametrize(
    ("estimator", "sigma"), [("two_policies", 0.1), ("shared_rollouts", 0.02), ("conjugate_gradient", 0.02)]
)
def test_estimates_that_solve_a_lower_system_are_consistent(estimator, sigma):
    """With 200 units a prompt the sampled lower system is nearly the whole one:
    the answer is within 6 % of the hyper-gradient's norm; U1's direct term is not."""
    task, exact = world(40)
    method = Bilevel("likelihood", estimator, pairs=200, sigma=sigma, perturbed_steps=60)
    state = State.begin(task, seed=1, learning_rate=1e-3, reward_rate=1e-3)
    units = method._units(task, state, 200 * PROMPTS)
    (gradient,) = method._gradient(
        task, state, units, sigma, Plan(labels=[1], rollouts=20_000 if estimator == "two_policies" else 2)
    )
    mean, scale = gradient.double().mean(0), exact["likelihood"].norm()
    noise = gradient.double().std(0).norm() / 40**0.5
    assert float((mean - exact["likelihood"]).norm()) < 0.06 * scale + 3 * noise
    assert float((exact["stop_gradient"] - exact["likelihood"]).norm()) > 0.3 * scale
    assert noise < 0.2 * scale


def test_momentum_of_one_is_the_single_loop():
    task, _ = world(2)
    plan = Plan(labels=[24, 48, 72], prompts=3, rollouts=2, steps=1)
    ends = [train(task, Bilevel("likelihood", loop=loop, momentum=1.0), plan)[0] for loop in ("single", "momentum")]
    assert torch.equal(ends[0].reward.phi, ends[1].reward.phi)


def test_momentum_averages_where_nothing_moves():
    """φ fixed: d_k = a g_k + (1 − a) d_{k−1}, an exponential average, whose variance falls towards a/(2 − a) of one
    estimate's."""
    task, _ = world(500)
    state = State.begin(task, seed=1, learning_rate=0.0, reward_rate=0.0)
    method = Bilevel("likelihood", "covariance", loop="momentum", momentum=0.2)
    plan, found = Plan(labels=[1], rollouts=2), []
    for _ in range(25):
        units = method._units(task, state, 2 * PROMPTS)
        found.append(method._gradient(task, state, units, 0.1, plan)[0])
    first, last = found[0].var(0).sum(), torch.stack(found[-3:]).var(1).sum(-1).mean()
    assert float(last / first) == pytest.approx(0.2 / 1.8, rel=0.25)


def test_momentum_follows_a_moving_reward():
    """The correction g(φ_k) − g(φ_{k−1}) on the same labels keeps the average unbiased for the newest φ."""
    task, _ = world(3000)
    state = State.begin(task, seed=1, learning_rate=0.0, reward_rate=0.0)
    plan, method = Plan(labels=[1], rollouts=2), Bilevel("stop_gradient", loop="momentum", momentum=0.1)
    for shift in (0.0, 0.3, 0.3, 0.3):
        with torch.no_grad():
            state.reward.phi += shift
        running = method._gradient(task, state, method._units(task, state, 2 * PROMPTS), 0.1, plan)[0]
    fresh = torch.cat(
        [
            Bilevel("stop_gradient")._gradient(task, state, method._units(task, state, 2 * PROMPTS), 0.1, plan)[0]
            for _ in range(3)
        ]
    )
    error = (running.var(0) / len(running) + fresh.var(0) / len(fresh)).sqrt()
    assert bool(((running.mean(0) - fresh.mean(0)).abs() < 4.5 * error).all())
