"""Batched small transformers: one run and one sequence by plain loops, causality, laws that sum to one,
runs that know nothing of each other."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from multiref.errors import ArgumentError
from multiref_lab.stability.gradient import PPO, RLOO
from multiref_lab.stability.sample import Prompts, Sample
from multiref_lab.stability.training import Fit, climb, fit_pairs, pair_margins
from multiref_lab.stability.transformer import Shape
from multiref_lab.stability.transformer_cell import (
    TransformerSettings,
    _influence,
    _per_pair,
    draw_transformer,
    measure_transformer,
)

SHAPE = Shape(width=8)
TINY = TransformerSettings(samples=20, width=8, seeds=2, replaced=2, left_out=1, fresh=5, fit_steps=12, ascent_steps=8)


def made(runs=3, seed=0, shape=SHAPE):
    generator = torch.Generator().manual_seed(seed)
    parameters = shape.initial(runs, generator, spread=1.5)
    return parameters, torch.randn(runs, 4, shape.content, generator=generator, dtype=torch.float64)


def by_hand(shape, row, content, tokens):
    """One run, one sequence, one position at a time, NumPy: [1 + T, outputs]."""
    w, at = {}, 0
    for name, (rows, columns) in shape.parts.items():
        w[name] = row[at : at + rows * columns].reshape(rows, columns)
        at += rows * columns
    norm = lambda v: v / np.sqrt((v**2).mean() + 1e-6)  # noqa: E731
    x = [content @ w["content"] + w["position"][0]] + [w["token"][t] + w["position"][i + 1] for i, t in enumerate(tokens)]
    half, seen, out = shape.width // shape.heads, [], []
    for t, v in enumerate(x):
        seen.append((norm(v) @ w["qkv"]).reshape(3, shape.heads, half))
        mixed = []
        for h in range(shape.heads):
            scores = np.array([seen[t][0, h] @ seen[j][1, h] for j in range(t + 1)]) / np.sqrt(half)
            share = np.exp(scores - scores.max())
            mixed.append((share / share.sum()) @ np.array([seen[j][2, h] for j in range(t + 1)]))
        v = v + np.concatenate(mixed) @ w["mix"]
        v = v + np.maximum(norm(v) @ w["up"], 0) ** 2 @ w["down"]
        out.append(norm(v) @ w["head"])
    return np.array(out)


def test_outputs_are_the_formulas_one_position_at_a_time():
    parameters, content = made()
    tokens = torch.tensor([[1, 3, 0]]).expand(3, 4, -1)
    found = SHAPE.outputs_at(parameters, content, tokens)
    for r in (0, 2):
        for b in (0, 3):
            np.testing.assert_allclose(
                found[r, b].numpy(), by_hand(SHAPE, parameters[r].numpy(), content[r, b].numpy(), [1, 3, 0]), rtol=1e-9
            )


def test_laws_sum_to_one_and_agree_with_whole_completions():
    parameters, content = made()
    everything = SHAPE.all_logps(parameters, content)
    torch.testing.assert_close(everything.exp().sum(-1), torch.ones(3, 4, dtype=torch.float64), rtol=1e-12, atol=0)
    completions = SHAPE.completions()
    for place in (0, 17, 63):
        each = completions[place].expand(3, 4, -1)
        torch.testing.assert_close(SHAPE.logps(parameters, content, each), everything[..., place], rtol=1e-10, atol=1e-12)
        assert (SHAPE.index(each) == place).all()
    scored = Shape(width=8, outputs=1)
    parameters, content = made(shape=scored)
    each = completions[17].expand(3, 4, -1)
    torch.testing.assert_close(
        scored.all_rewards(parameters, content)[..., 17], scored.rewards(parameters, content, each), rtol=1e-10, atol=1e-12
    )


def test_samples_follow_the_law():
    parameters, content = made(runs=1)
    content = content[:, :1].expand(-1, 40_000, -1)
    uniforms = torch.rand(1, 40_000, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = SHAPE.sample(parameters, content, uniforms)
    law = SHAPE.all_logps(parameters, content[:, :1])[0, 0].exp()
    share = torch.bincount(SHAPE.index(found)[0], minlength=64) / 40_000
    assert 0.5 * (share - law).abs().sum() < 0.03


def test_the_first_tokens_do_not_see_the_later_ones_and_runs_do_not_see_each_other():
    parameters, content = made()
    a, b = torch.tensor([1, 2, 3]).expand(3, 4, -1), torch.tensor([1, 0, 0]).expand(3, 4, -1)
    torch.testing.assert_close(*(SHAPE.outputs_at(parameters, content, t)[:, :, :2] for t in (a, b)), rtol=0, atol=0)
    other = parameters.clone()
    other[1] += 1
    same = SHAPE.logps(parameters, content, a), SHAPE.logps(other, content, a)
    torch.testing.assert_close(same[0][[0, 2]], same[1][[0, 2]], rtol=0, atol=0)
    assert not torch.equal(same[0][1], same[1][1])


def test_a_margin_of_dpo_is_beta_times_the_log_ratio_s_difference():
    sample, _ = draw_transformer(TINY)
    parameters, _ = made(2, seed=5)
    completions = SHAPE.completions()
    content, chosen, other = sample.prompts.features[:, :, 0], completions[sample.preferred], completions[sample.other]
    pool = sample.prompts.pool(2)
    tilt = -0.5 * sample.difference(pool)
    found = pair_margins(SHAPE, beta=0.5)(parameters, content, chosen, other, tilt)
    ratio = SHAPE.all_logps(parameters, content) - pool
    torch.testing.assert_close(found, 0.5 * sample.difference(ratio), rtol=1e-9, atol=1e-12)


def test_each_run_trains_as_if_it_were_alone_on_the_data_it_has():
    """Seed 1's run 1 in the batch of all runs, and by itself on data whose first pair is the spare: the same parameters."""
    sample, start = draw_transformer(TINY)
    tilt = torch.zeros_like(sample.preferred, dtype=torch.float64)
    settings = Fit(steps=12)
    whole = fit_pairs(sample, SHAPE, start, settings, beta=0.5, tilt=tilt, seed=3)
    order = [20, *range(1, 20), 20, 21]
    p = sample.prompts
    moved = Sample(Prompts(p.features[:, order], p.reward[:, order], p.ref_logps[:, :, order]), sample.preferred[:, order],
        sample.other[:, order],
                   sample.fresh, sample.runs, 0.0)  # fmt: skip
    alone = fit_pairs(moved, SHAPE, start, settings, beta=0.5, tilt=tilt, seed=3)
    torch.testing.assert_close(alone[:, 0], whole[:, 1], rtol=1e-8, atol=1e-10)
    assert (whole[:, 1] - whole[:, 0]).norm(dim=-1).min() > 1e-6


def test_training_lowers_the_loss_and_the_ascent_raises_the_objective():
    sample, start = draw_transformer(replace(TINY, samples=60, replaced=1, left_out=0))
    tilt = -0.5 * sample.difference(sample.prompts.pool(1))
    fitted = fit_pairs(sample, SHAPE, start, Fit(steps=60, rate=0.01, ridge=0.1), beta=0.5, tilt=tilt, seed=0)[:, 0]
    completions, content = SHAPE.completions(), sample.prompts.features[:, :, 0]
    args = (content, completions[sample.preferred], completions[sample.other], tilt)
    losses = [torch.nn.functional.softplus(-pair_margins(SHAPE, beta=0.5)(p, *args)[:, :60]).mean() for p in (start, fitted)]
    assert losses[1] < 0.7 * losses[0]
    places = completions.sum(-1).double()

    def reward(content, chosen):
        return chosen.sum(-1).double()

    for ascent in (PPO, RLOO):
        climbed = climb(
            sample,
            SHAPE,
            start,
            reward,
            sample.prompts.pool(1),
            replace(ascent, batch=16, steps=80, rate=0.02),
            beta=0.5,
            seed=1,
        )[:, 0]
        seen = content[:, :60]
        ref = sample.prompts.pool(1)[:, :60]

        def objective(parameters, seen=seen, ref=ref):
            log_policy = SHAPE.all_logps(parameters, seen)
            return (log_policy.exp() * (places - 0.5 * (log_policy - ref))).sum(-1).mean()

        best = 0.5 * (ref + places / 0.5).logsumexp(-1).mean()
        assert objective(climbed) - objective(start) > 0.6 * (best - objective(start)), ascent.name


def test_a_cell_measures_every_method_and_the_rerun_alone_differs_where_nothing_is_exchanged():
    found = measure_transformer(TINY)
    assert set(found) == {f"{m}/{k}" for m in ("dpo", "gibbs", "ppo", "rloo") for k in (1, 2)} | {
        "influence/reward model",
        "influence/dpo/1",
    }
    for name, measured in found.items():
        assert all(len(v) == 2 and np.isfinite(v).all() for v in measured.values()), name
        if not name.startswith("influence"):
            assert all(v > 0 for v in measured["replace/tv"]) and all(v > 0 for v in measured["rerun/tv"])
    with pytest.raises(ArgumentError, match="multiple of 2"):
        Shape(width=7)


def test_gradients_pair_by_pair_are_differences():
    """∂m_i/∂w of every pair by itself, against central differences along a direction; a pair does not see how many others."""
    sample, start = draw_transformer(TINY)
    completions, margins = SHAPE.completions(), pair_margins(SHAPE, beta=0.5)
    rows = [
        sample.prompts.features[0, :7, 0],
        completions[sample.preferred[0, :7]],
        completions[sample.other[0, :7]],
        torch.zeros(7, dtype=torch.float64),
    ]
    values, jacobian = _per_pair(margins, start[0], *rows)
    along = torch.randn(start.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = [_per_pair(margins, start[0] + step * along, *rows)[0] for step in (1e-6, -1e-6)]
    torch.testing.assert_close(jacobian @ along, (ends[0] - ends[1]) / 2e-6, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(_per_pair(margins, start[0], *(row[:2] for row in rows))[1], jacobian[:2])
    torch.testing.assert_close(values, margins(start[:1], *(row[None] for row in rows))[0])


def test_influence_looks_at_the_full_run_and_at_those_that_leave_a_pair_out():
    """Runs with a pair replaced, and the rerun, may be anything."""
    sample, start = draw_transformer(TINY)
    runs, tilt = sample.runs, torch.zeros_like(sample.preferred, dtype=torch.float64)
    parameters = start[:, None] + 0.01 * torch.randn(2, runs.count, start.shape[1], generator=torch.Generator().manual_seed(1))
    spoilt = parameters.clone()
    spoilt[:, [*range(1, 1 + runs.replaced), -1]] = torch.nan
    found, same = (_influence(TINY, sample, each, SHAPE, 0.5, tilt) for each in (parameters, spoilt))
    assert found == same and all(np.isfinite(values).all() for values in found.values())


def test_the_ridge_pulls_towards_the_start():
    """With an enormous one nothing moves further than a step of Adam, whatever the pairs say."""
    sample, start = draw_transformer(TINY)
    tilt = torch.zeros_like(sample.preferred, dtype=torch.float64)
    held = fit_pairs(sample, SHAPE, start, Fit(steps=40, rate=0.003, ridge=1e9), beta=0.5, tilt=tilt, seed=0)
    free = fit_pairs(sample, SHAPE, start, Fit(steps=40, rate=0.003, ridge=0.0), beta=0.5, tilt=tilt, seed=0)
    assert (held - start.unsqueeze(1)).abs().max() < 0.01 < (free - start.unsqueeze(1)).abs().max()
