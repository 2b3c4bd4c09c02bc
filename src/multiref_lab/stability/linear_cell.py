"""One cell of the experiment in a log-linear class: data, every method under one and two references, all measures."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import softplus

from multiref_lab.stability.fit import agreement, influence
from multiref_lab.stability.gradient import PPO, RLOO
from multiref_lab.stability.log_linear import climb, dpo, dpo_offset, gibbs, reward_model
from multiref_lab.stability.measures import Measured, measure_policies
from multiref_lab.stability.sample import Given, LinearSettings, Sample, draw


def measure_linear(settings: LinearSettings, given: Given | None = None) -> Measured:
    """Methods `dpo`, `gibbs`, `ppo`, `rloo`, K of 1 and 2; and `influence/…` of the two fits."""
    sample, beta, ridge = draw(settings, given), settings.beta, settings.ridge
    theta = reward_model(sample, ridge=ridge)
    found: Measured = {"influence/reward model": _influence(sample, theta, None, ridge)}
    ascents = [replace(a, steps=settings.ascent_steps) for a in (PPO, RLOO)]
    for references in (1, 2):
        policies = {
            "dpo": dpo(sample, references, beta=beta, ridge=ridge),
            "gibbs": gibbs(theta, references, beta=beta),
            **{a.name: climb(sample, theta, references, a, beta=beta, seed=settings.seed) for a in ascents},
        }
        judged = {name: (each.parameter, each.law) for name, each in policies.items()}
        found |= measure_policies(judged, sample, references, beta=beta, most=256)
        offset = dpo_offset(sample, references, beta=beta)
        fitted = policies["dpo"].parameter * beta
        found[f"dpo/{references}"]["loss_gap"] = _loss_gap(sample, fitted[:, 0], offset, references, beta)
        if references == 2:
            found["influence/dpo/2"] = _influence(sample, fitted, offset, ridge)
    found["gibbs/1"]["loss_gap"] = found["gibbs/2"]["loss_gap"] = _loss_gap(sample, theta[:, 0], None, 1, beta)
    return found


def _loss_gap(sample: Sample, theta: Tensor, offset: Tensor | None, references: int, beta: float) -> list[float]:
    """Preference loss on fresh prompts (exact over pairs and labels) less that on the training pairs, [S]."""
    n = sample.runs.samples
    margin = (sample.delta() * theta.unsqueeze(1)).sum(-1) + (0 if offset is None else offset)
    seen = softplus(-margin[:, :n]).mean(-1)
    fresh = sample.fresh
    score = torch.einsum("sfyd,sd->sfy", fresh.features, theta)
    if offset is not None:
        score = score + beta * (fresh.pool(1) - fresh.pool(references))
    wins = torch.sigmoid(fresh.reward.unsqueeze(-1) - fresh.reward.unsqueeze(-2))
    wins = wins + sample.flip * (1 - 2 * wins)
    each = wins * softplus(score.unsqueeze(-2) - score.unsqueeze(-1))
    law = fresh.ref_logps.exp().mean(0)
    shown = law.unsqueeze(-1) * law.unsqueeze(-2) * (1 / (1 - law).unsqueeze(-1))  # the first, then another
    shown = (shown + shown.mT) / 2 * (1 - torch.eye(law.shape[-1], dtype=torch.float64))
    return ((2 * shown * each).sum((-1, -2)).mean(-1) - seen).tolist()


def _influence(sample: Sample, theta: Tensor, offset: Tensor | None, ridge: float) -> dict[str, list[float]]:
    """Predicted against true changes of margins on fresh prompts when a pair is left out, plain and divided by 1 − leverage."""
    runs = sample.runs
    if not runs.left_out:
        return {}
    gone = runs.changed[1 + runs.replaced : -1].expand(len(theta), -1)
    weight = runs.weights[0].expand(len(theta), -1)
    moved, leverage = influence(sample.delta(), weight, theta[:, 0], gone, offset=offset, ridge=ridge)
    features = sample.fresh.features
    across = features[:, :, 0] - features[:, :, 1]
    true = (runs.split(theta)[1] - theta[:, :1]) @ across.mT
    corrected = moved / (1 - leverage).unsqueeze(-1)
    found = {"leverage": leverage.mean(-1).tolist()} | agreement(moved @ across.mT, true)
    return found | agreement(corrected @ across.mT, true, "corrected_")
