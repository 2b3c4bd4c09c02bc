"""Where on-policy rules settle, solved exactly: those with the penalty in the reward in closed form, those with it as a loss by backward induction.

A penalty in the reward makes the update the exact gradient of E_π[r − β log(π/P)], so the rule ends at P e^{r/β}. A penalty used as a loss
has no return-to-go: at each prefix the update balances the expected reward of each token against a divergence at that prefix alone. So, from the
last token backwards, each prefix solves its own small problem with the reward-to-go of the policy below it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from multiref import exact
from multiref.divergences import disagreement, k3, kl
from multiref.pools import power_pool
from multiref.regularizers import ForwardKL, Regularizer, ReverseKL
from multiref_lab.claim import Check, Claim, Effort, Measurement, all_hold, at_most, near
from multiref_lab.problems import Language

__all__ = ["ONLINE_FIXED_POINTS"]

_BETA, _WEIGHTS, _VOCABULARY, _LENGTH = 0.5, (0.5, 0.5), 4, 4


def _world() -> tuple[Language, list[Tensor], Tensor]:
    """The instance of the design page: 4 tokens, length 4, K = 2, logits 2 N(0, 1), rewards U(0, 1), seed 0. Levels are [K, V^t, V]."""
    generator = torch.Generator().manual_seed(0)
    language = Language(_VOCABULARY, _LENGTH)
    rows = [_VOCABULARY**t for t in range(_LENGTH)]
    tables = [2 * torch.randn(sum(rows), _VOCABULARY, generator=generator, dtype=torch.float64) for _ in range(2)]
    levels = [torch.stack(parts).log_softmax(-1) for parts in zip(*(table.split(rows) for table in tables))]
    return language, levels, torch.rand(language.completions, generator=generator, dtype=torch.float64)


def _backward(
    reward: Tensor, references: list[Tensor], regularizer: Regularizer, scale: list[Tensor] | None = None
) -> list[Tensor]:
    """Fixed point of a rule with the penalty as a loss: at each prefix solve for reward-to-go Q and strength β · scale. Levels [V^t, V]."""
    policy: list[Tensor] = []
    to_go = reward
    for t in reversed(range(len(references))):
        q = to_go.reshape(-1, references[t].shape[-1])
        stretched = q if scale is None else q / scale[t].unsqueeze(-1)
        policy.insert(0, exact.solve(stretched, references[t], regularizer, beta=_BETA).log_policy)
        to_go = (policy[0].exp() * q).sum(-1)
    return policy


def _as_loss(levels: list[Tensor], reward: Tensor) -> dict[str, list[Tensor]]:
    prices = [disagreement(level, _WEIGHTS) for level in levels]
    renormalised = [(power_pool(level, _WEIGHTS, order=0.0) + f.unsqueeze(-1)).unsqueeze(0) for level, f in zip(levels, prices)]
    return {
        "k2 as loss, pool": _backward(reward, levels, ReverseKL(_WEIGHTS)),
        "k3 as loss, renormalised tokens": _backward(reward, renormalised, ForwardKL()),
        "k3 as loss, pool": _backward(reward, renormalised, ForwardKL(), [(-f).exp() for f in prices]),
        "k3 as loss, each reference": _backward(reward, levels, ForwardKL(_WEIGHTS)),
    }


def _expected_update(rule: str, policy: list[Tensor], levels: list[Tensor], reward: Tensor, language: Language) -> float:
    """Largest entry of the rule's expected update at a policy, by autograd through the estimators themselves."""
    logits = [level.clone().requires_grad_(True) for level in policy]
    tokens = [level.log_softmax(-1) for level in logits]
    pool = [power_pool(level, _WEIGHTS, order=0.0) for level in levels]
    if rule == "k2 as loss, pool":
        penalty = [0.5 * (t - p) ** 2 for t, p in zip(tokens, pool)]
    elif rule == "k3 as loss, renormalised tokens":
        penalty = [k3(t, p.log_softmax(-1).unsqueeze(0)) for t, p in zip(tokens, pool)]
    elif rule == "k3 as loss, pool":
        penalty = [torch.expm1(p - t) + t - p for t, p in zip(tokens, pool)]
    else:
        penalty = [k3(t, level, _WEIGHTS) for t, level in zip(tokens, levels)]
    logps = language.logps(tokens)
    probability = logps.exp().detach()
    surrogate = (probability * (reward * logps - _BETA * language.logps(penalty))).sum()
    return max(float(g.abs().max()) for g in torch.autograd.grad(surrogate, logits))


def _measure(effort: Effort) -> Measurement:
    language, levels, reward = _world()
    whole = torch.stack([language.logps([level[k] for level in levels]) for k in range(2)])
    best = exact.solve(reward, whole, ReverseKL(_WEIGHTS), beta=_BETA).log_policy
    tokenwise = language.logps([power_pool(level, _WEIGHTS, order=0.0).log_softmax(-1) for level in levels])
    in_reward = {
        "k1 in reward, pool": (0.0, power_pool(whole, _WEIGHTS, order=0.0)),
        "k1 in reward, renormalised tokens": (0.089, tokenwise),
        "k1 in reward, harmonic pool (MRPO's)": (0.163, power_pool(whole, _WEIGHTS, order=-1.0)),
        "k1 in reward, one reference": (2.19, whole[0]),
    }
    checks: list[Check] = []
    for rule, (predicted, pool) in in_reward.items():
        end = (pool + reward / _BETA).log_softmax(-1)
        checks.append(near(f"{rule}: KL(end‖π*)", predicted, float(kl(end, best)), 0.005 if predicted else 1e-12))
    predictions = {
        "k2 as loss, pool": 0.107,
        "k3 as loss, renormalised tokens": 0.118,
        "k3 as loss, pool": 0.553,
        "k3 as loss, each reference": 0.517,
    }
    worst = 0.0
    for rule, policy in _as_loss(levels, reward).items():
        checks.append(near(f"{rule}: KL(end‖π*)", predictions[rule], float(kl(language.logps(policy), best)), 0.005))
        worst = max(worst, _expected_update(rule, policy, levels, reward, language))
    checks.append(at_most("largest expected update at the four fixed points found by backward induction", 1e-9, worst))
    return Measurement(
        tuple(checks), note="KL in nats per completion, direction KL(end‖optimum); only the first rule ends at the optimum."
    )


ONLINE_FIXED_POINTS = Claim(
    name="online-fixed-points",
    group="exact",
    statement="Only k1 on the weighted log-ratio in the reward ends at the optimum; the other on-policy rules settle elsewhere.",
    status="derived",
    source="docs/theory.md 6",
    predicted="KL to the optimum 0 for the exact rule; 0.118, 0.55, 0.163, 2.2 for the named others",
    rule="verified if every distance is within 0.005 of its predicted value and no rule moves at its fixed point",
    measure=_measure,
    decide=all_hold,
)
