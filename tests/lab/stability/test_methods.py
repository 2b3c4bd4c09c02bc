"""DPO, Gibbs, PPO and RLOO in a log-linear class: what they end at, what is the same about them,
and what exchanging nothing moves."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from multiref import ReverseKL, exact
from multiref_lab.stability.gradient import PPO, RLOO, draws
from multiref_lab.stability.linear_cell import _loss_gap, measure_linear
from multiref_lab.stability.log_linear import climb, dpo, gibbs, reward_model
from multiref_lab.stability.measures import close_kl, distances, total_variation
from multiref_lab.stability.runs import Runs
from multiref_lab.stability.sample import LinearSettings, Prompts, Sample, draw

BETA = 0.5
SMALL = LinearSettings(samples=60, dimension=3, seeds=2, completions=5, replaced=2, left_out=2, fresh=12)


def rebuilt(sample, prompts=None, **changes):
    parts = {
        "prompts": prompts or sample.prompts,
        "preferred": sample.preferred,
        "other": sample.other,
        "fresh": sample.fresh,
        "runs": sample.runs,
        "flip": sample.flip,
    }
    return Sample(**(parts | changes))


def test_gibbs_is_the_exact_optimum_and_its_distances_are_brute_force():
    sample = draw(SMALL)
    theta = reward_model(sample, ridge=0.1)
    fresh = sample.fresh
    log_policy = gibbs(theta, 2, beta=BETA).log_policy(fresh)
    learned = torch.einsum("sfyd,sd->sfy", fresh.features, theta[:, 1])
    torch.testing.assert_close(
        log_policy[:, 1], exact.solve(learned, fresh.ref_logps, ReverseKL(), beta=BETA).log_policy, rtol=0, atol=1e-12
    )
    found = distances(log_policy, theta / BETA, sample, 2, beta=BETA)
    p = log_policy.exp().numpy()
    refs, reward = fresh.ref_logps.numpy(), fresh.reward.numpy()
    for s in range(2):
        tv, kl, value = [], [], []
        for m in (1, 2):
            tv.append([0.5 * np.abs(p[s, 0, f] - p[s, m, f]).sum() for f in range(12)])
            kl.append([(p[s, 0, f] * np.log(p[s, 0, f] / p[s, m, f])).sum() for f in range(12)])
            f = [
                [(p[s, r, x] * (reward[s, x] - BETA * (np.log(p[s, r, x]) - refs[:, s, x].mean(0)))).sum() for x in range(12)]
                for r in (0, m)
            ]
            value.append(np.abs(np.subtract(*f)))
        assert found["replace/tv"][s] == pytest.approx(np.mean(tv), rel=1e-9)
        assert found["replace/kl"][s] == pytest.approx(np.mean(kl), rel=1e-6)
        assert found["replace/value"][s] == pytest.approx(np.mean(value), rel=1e-6)
        assert found["replace/worst_value"][s] == pytest.approx(np.mean(np.max(value, axis=1)), rel=1e-6)
        assert found["replace/parameter"][s] == pytest.approx(
            (theta[s, 1:3] - theta[s, 0]).norm(dim=-1).mean().item() / BETA, rel=1e-9
        )
    best = exact.solve(fresh.reward, fresh.ref_logps, ReverseKL(), beta=BETA)
    lost = best.value - exact.value(log_policy[:, 0], fresh.reward, fresh.ref_logps, ReverseKL(), beta=BETA)
    assert found["regret"] == pytest.approx(lost.mean(-1).tolist(), rel=1e-6)


def test_close_kl_keeps_its_digits_where_policies_nearly_agree():
    """KL of p and p perturbed by δ is ½ Σ p δ² − ½ (Σ p δ)² to first order: at δ = 1e-8 the naive sum has none of its
    digits."""
    log_p = torch.randn(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(-1)
    delta = 1e-8 * torch.arange(7, dtype=torch.float64)
    p = log_p.exp()
    expected = 0.5 * ((p * delta**2).sum() - (p * delta).sum() ** 2)
    assert close_kl(log_p, (log_p + delta).log_softmax(-1)).item() == pytest.approx(expected.item(), rel=1e-5)
    assert total_variation(torch.tensor([0.25, 0.75]).log(), torch.tensor([0.5, 0.5]).log()).item() == pytest.approx(0.25)


def test_with_one_reference_dpo_is_the_reward_model_s_gibbs_policy():
    sample = draw(SMALL)
    theta = reward_model(sample, ridge=0.1)
    torch.testing.assert_close(
        dpo(sample, 1, beta=BETA, ridge=0.1).parameter, gibbs(theta, 1, beta=BETA).parameter, rtol=0, atol=1e-9
    )


def test_with_two_references_dpo_minimises_its_own_loss():
    sample = draw(SMALL)
    found = dpo(sample, 2, beta=BETA, ridge=0.1).parameter[0, 0]
    refs = sample.prompts.ref_logps[:, 0, :60].numpy()
    features = sample.prompts.features[0, :60].numpy()
    at = np.arange(60)
    w, l = sample.preferred[0, :60].numpy(), sample.other[0, :60].numpy()

    def loss(v):
        logits = refs[0] + features @ v
        log_policy = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        implicit = BETA * (log_policy - refs.mean(0))
        return float(np.logaddexp(0, implicit[at, l] - implicit[at, w]).sum() + 0.05 * BETA**2 * v @ v)

    np.testing.assert_allclose(found.numpy(), minimize(loss, np.zeros(3), options={"gtol": 1e-10}).x, atol=1e-5)


def test_dpo_and_gibbs_agree_under_two_references_where_these_differ_linearly():
    """log π_2 − log π_1 = ⟨u, φ⟩ puts the pool into DPO's class: without a ridge both are the same maximum likelihood."""
    sample = draw(SMALL)
    u = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    def tilted(prompts):
        first = prompts.ref_logps[0]
        return Prompts(prompts.features, prompts.reward, torch.stack((first, (first + prompts.features @ u).log_softmax(-1))))

    sample = rebuilt(sample, tilted(sample.prompts), fresh=tilted(sample.fresh))
    by_dpo = dpo(sample, 2, beta=BETA, ridge=1e-9).log_policy(sample.fresh)
    by_gibbs = gibbs(reward_model(sample, ridge=1e-9), 2, beta=BETA).log_policy(sample.fresh)
    torch.testing.assert_close(by_dpo, by_gibbs, rtol=0, atol=1e-6)
    assert (
        total_variation(by_gibbs, gibbs(reward_model(sample, ridge=1e-9), 1, beta=BETA).log_policy(sample.fresh)).mean() > 0.01
    )


@pytest.mark.parametrize("ascent", [PPO, RLOO], ids=lambda a: a.name)
def test_policy_gradients_end_at_the_best_of_their_class(ascent):
    """K = 1: the Gibbs policy itself.
    K = 2: what SciPy finds as the largest E_π[r̂] − β mean_k KL(π‖π_k) over π_1 e^{⟨w, φ⟩} on the training prompts."""
    sample = draw(replace(SMALL, samples=30, replaced=1, left_out=0, seeds=2))
    theta = reward_model(sample, ridge=1.0)
    patient = replace(ascent, steps=240, batch=32, group=8, rate=0.1)
    one = climb(sample, theta, 1, patient, beta=BETA, seed=1).parameter[:, 0]
    torch.testing.assert_close(one, theta[:, 0] / BETA, rtol=0, atol=0.25 if ascent is PPO else 0.05)
    two = climb(sample, theta, 2, patient, beta=BETA, seed=1).parameter[0, 0].numpy()
    features, refs = sample.prompts.features[0, :30].numpy(), sample.prompts.ref_logps[:, 0, :30].numpy()
    reward = features @ theta[0, 0].numpy()

    def loss(v):
        logits = refs[0] + features @ v
        log_policy = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return -float((np.exp(log_policy) * (reward - BETA * (log_policy - refs.mean(0)))).sum(-1).mean())

    best = minimize(loss, np.zeros(3), options={"gtol": 1e-10})
    assert loss(two) - best.fun < 0.02 * (loss(np.zeros(3)) - best.fun)


@pytest.mark.parametrize("references", [1, 2])
def test_a_policy_gradient_that_takes_no_step_stays_at_the_first_reference(references):
    """Whatever it is regularised to: the class is π_1 e^{⟨w, φ⟩}, w = 0."""
    sample = draw(SMALL)
    still = climb(sample, reward_model(sample, ridge=0.1), references, replace(RLOO, steps=1, rate=0.0), beta=BETA, seed=1)
    expected = sample.fresh.ref_logps[0].unsqueeze(1).expand(-1, sample.runs.count, -1, -1)
    torch.testing.assert_close(still.log_policy(sample.fresh), expected, rtol=0, atol=1e-13)


def test_exchanging_a_pair_for_itself_moves_nothing_and_other_random_numbers_do():
    """Common random numbers: with every spare equal to what it replaces, all replaced runs are run 0 to the last bit,
    whatever the method; the rerun isn't."""
    sample = draw(SMALL)
    copies = [*range(60), 0, 1]
    prompts = Prompts(
        *(x[:, copies] for x in (sample.prompts.features, sample.prompts.reward)), sample.prompts.ref_logps[:, :, copies]
    )
    same = rebuilt(sample, prompts, preferred=sample.preferred[:, copies], other=sample.other[:, copies])
    theta = reward_model(same, ridge=0.1)
    torch.testing.assert_close(theta[:, 1:3], theta[:, :1].expand(-1, 2, -1), rtol=0, atol=1e-9)
    theta = theta[:, :1].expand(-1, same.runs.count, -1)
    for ascent in (PPO, RLOO):
        policy = climb(same, theta, 2, replace(ascent, steps=12), beta=BETA, seed=5).parameter
        torch.testing.assert_close(policy[:, 1:3], policy[:, :1].expand(-1, 2, -1), rtol=0, atol=1e-12)
        assert (policy[:, -1] - policy[:, 0]).norm(dim=-1).min() > 1e-3


def test_a_policy_gradient_step_is_unbiased():
    """One RLOO batch of many completions against the exact gradient of E_π[r̂ − β log π/P] at w = 0, by autograd."""
    sample = draw(replace(SMALL, samples=4, replaced=1, left_out=0, seeds=1))
    theta = torch.randn(1, 1, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64).expand(
        1, sample.runs.count, -1
    )
    seen = []
    taken = replace(RLOO, steps=1, batch=4000, group=8, rate=1.0)

    import multiref_lab.stability.log_linear as module

    original = module._Gathered.transposed
    module._Gathered.transposed = lambda self, pull: seen.append(original(self, pull)) or seen[-1]
    try:
        climb(sample, theta, 2, taken, beta=BETA, seed=2)
    finally:
        module._Gathered.transposed = original
    w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    prompts = sample.prompts.take(slice(0, 4))
    log_policy = (prompts.pool(1)[0] + prompts.features[0] @ w).log_softmax(-1)
    net = prompts.features[0] @ theta[0, 0] - BETA * (log_policy - prompts.pool(2)[0])
    (gradient,) = torch.autograd.grad((log_policy.exp() * net).sum(-1).mean(), w)
    torch.testing.assert_close(seen[0][0, 0], gradient, rtol=0, atol=0.05 * float(gradient.norm()))


def test_clipping_stops_only_what_goes_too_far():
    ratio = torch.tensor([1.3, 1.3, 0.7, 0.7, 1.1])
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    torch.testing.assert_close(PPO.kept(ratio, advantage), torch.tensor([0.0, 1.3, 0.7, 0.0, 1.1]))
    assert torch.equal(RLOO.kept(ratio, advantage), ratio)
    returns = torch.tensor([[[1.0, 2.0, 3.0, 6.0]]])
    torch.testing.assert_close(RLOO.advantages(returns), torch.tensor([[[1 - 11 / 3, 2 - 10 / 3, 3 - 3, 6 - 2]]]))
    white = PPO.advantages(torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(white.mean((-1, -2)), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(white.square().mean((-1, -2)), torch.ones(2), atol=1e-5, rtol=0)


def test_runs_share_their_random_numbers_but_for_the_last():
    runs = Runs(20, 2, 1)
    rows, uniforms = next(draws(runs, 3, 50, 50, 2, seed=1))
    assert rows.shape == (3, 5, 50) and uniforms.shape == (3, 5, 50, 2)
    for m in range(1, 4):
        assert torch.equal(uniforms[:, m], uniforms[:, 0])
        differs = rows[:, m] != rows[:, 0]
        assert torch.equal(differs, rows[:, 0] == runs.changed[m])
    assert not torch.equal(uniforms[:, -1], uniforms[:, 0]) and not torch.equal(rows[:, -1], rows[:, 0])


def test_the_world_is_what_it_says():
    """Variance one, the curved part uncorrelated with all features, labels that Bradley–Terry and the flips make."""
    sample = draw(replace(SMALL, samples=4000, seeds=4, dimension=3, curved=0.3, noise=0.2, completions=6))
    reward, features = sample.prompts.reward, sample.prompts.features
    assert reward.var().item() == pytest.approx(1, abs=0.08)
    for s in range(4):
        x, y = features[s].flatten(0, 1), reward[s].flatten() - reward[s].mean()
        fitted = x @ torch.linalg.lstsq(x, y).solution
        assert fitted.var().item() == pytest.approx(0.7, abs=0.06) and (y - fitted).var().item() == pytest.approx(0.3, abs=0.12)
    assert (sample.preferred != sample.other).all()
    gap = sample.difference(reward).abs()
    right = (sample.difference(reward) > 0).double().mean().item()
    p = torch.sigmoid(gap)
    assert right == pytest.approx((0.2 + 0.6 * p).mean().item(), abs=0.015)


def test_loss_gap_is_fresh_loss_less_training_loss():
    """With many fresh prompts it is the mean loss of fresh labelled pairs, drawn as the training pairs are,
    less that of the training pairs."""
    settings = replace(SMALL, samples=40, seeds=2, replaced=1, left_out=0, fresh=3000, noise=0.1)
    sample = draw(settings)
    theta = reward_model(sample, ridge=settings.ridge)[:, 0]
    found = _loss_gap(sample, theta, None, 1, BETA)
    from multiref_lab.stability.sample import draw_pairs

    losses = []
    generator = torch.Generator().manual_seed(9)
    for _ in range(20):
        pairs = draw_pairs(sample.fresh, 0.1, generator)
        score = torch.einsum("sfyd,sd->sfy", sample.fresh.features, theta)
        margin = rebuilt(sample, sample.fresh, preferred=pairs[0], other=pairs[1]).difference(score)
        losses.append(torch.nn.functional.softplus(-margin).mean(-1))
    seen = torch.nn.functional.softplus(-(sample.delta() @ theta.unsqueeze(-1))[:, :40, 0]).mean(-1)
    assert found == pytest.approx((torch.stack(losses).mean(0) - seen).tolist(), abs=0.01)


@pytest.mark.parametrize("references", [1, 2])
def test_the_loss_gap_of_dpo_by_enumeration(references):
    """The implicit reward β log(π/P) of the policy itself on every ordered pair of fresh completions, (y, y') shown with
    μ(y) μ(y')/(1 − μ(y)) and labelled by Bradley–Terry, a tenth of the labels flipped; less that on the training pairs."""
    settings = replace(SMALL, noise=0.1, fresh=3)
    sample, softplus = draw(settings), torch.nn.functional.softplus
    policy = dpo(sample, references, beta=BETA, ridge=settings.ridge)
    implicit, trained = (
        BETA * (policy.log_policy(prompts)[:, 0] - prompts.pool(references)) for prompts in (sample.fresh, sample.prompts)
    )
    mu, reward = sample.fresh.ref_logps.exp().mean(0), sample.fresh.reward
    found = measure_linear(replace(settings, ascent_steps=1))[f"dpo/{references}"]["loss_gap"]
    for s in range(2):
        fresh = 0.0
        for f, y, z in itertools.product(range(3), range(5), range(5)):
            if y != z:
                right = float(torch.sigmoid(reward[s, f, y] - reward[s, f, z])) * 0.8 + 0.1
                margin = implicit[s, f, y] - implicit[s, f, z]
                shown = float(mu[s, f, y] * mu[s, f, z] / (1 - mu[s, f, y])) / 3
                fresh += shown * float(right * softplus(-margin) + (1 - right) * softplus(margin))
        seen = float(softplus(-sample.difference(trained)[s, :60]).mean())
        assert found[s] == pytest.approx(fresh - seen, rel=1e-9)


def test_whitened_advantages_not_clipping_cost_ppo_its_stability():
    """The control of docs/stability.md, small: leave-one-out advantages make the clipped update as stable as RLOO."""
    from multiref_lab.stability.controls import VARIANTS, controls

    few = {name: replace(ascent, steps=80) for name, ascent in VARIANTS.items() if "four times" not in name}
    found = controls(replace(SMALL, samples=512, seeds=8, replaced=4, left_out=0), few)
    _, ppo, ppo_loo, rloo, _ = (measures["replace/tv"].mean for measures in found.values())
    assert ppo > 1.5 * ppo_loo and ppo_loo < 1.5 * rloo
    measured = measure_linear(small := replace(SMALL, left_out=0, ascent_steps=1))["gibbs/1"]
    for key, shown in controls(small, {})["Gibbs, exact"].items():  # the same policies as the page's, one reference
        assert shown.mean == pytest.approx(sum(measured[key]) / 2)
