"""Where on-policy rules settle, solved exactly: those with the penalty in the reward in closed form,
those with it as a loss by backward induction.

A penalty in the reward makes the update the exact gradient of E_π[r − β log(π/P)], so the rule ends at P e^{r/β}.
A penalty used as a loss
has no return-to-go: at each prefix the update balances the expected reward of each token against a divergence at that prefix
alone. So, from the last token backwards, each prefix solves its own small problem with the reward-to-go of the policy below it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from multiref import exact
from multiref.divergences import disagreement, k3, kl
from multiref.pools import power_pool
from multiref.regularizers import ForwardKL, Regularizer, ReverseKL
from multiref_lab.claim import Effort, Measurement, at_most, claim, near
from multiref_lab.problems import Language

_BETA, _WEIGHTS, _VOCABULARY, _LENGTH = 0.5, (0.5, 0.5), 4, 4


def _world() -> tuple[Language, list[Tensor], Tensor]:
    """4 tokens, length 4, K = 2, logits 2 N(0, 1), rewards U(0, 1), seed 0. Levels are [K, V^t, V]."""
    generator = torch.Generator().manual_seed(0)
    language = Language(_VOCABULARY, _LENGTH)
    rows = [_VOCABULARY**t for t in range(_LENGTH)]
    tables = [2 * torch.randn(sum(rows), _VOCABULARY, generator=generator, dtype=torch.float64) for _ in range(2)]
    levels = [torch.stack(parts).log_softmax(-1) for parts in zip(*(table.split(rows) for table in tables))]
    return language, levels, torch.rand(language.completions, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class _AsLoss:
    """A rule with the penalty as a loss.

    Attributes:
        end: KL(end‖π*) that the theory predicts.
        references: [K, V^t, V] per level, with `regularizer` and, per level, the strength's scale [V^t]:
            the problem that each prefix solves.
        penalty: (token log-probabilities, level) → the loss of each token, whose gradient the rule follows.
    """

    end: float
    references: list[Tensor]
    regularizer: Regularizer
    penalty: Callable[[Tensor, int], Tensor]
    scale: list[Tensor] | None = None

    def settle(self, reward: Tensor) -> list[Tensor]:
        """The fixed point, from the last token backwards: each prefix solved for its reward-to-go. Levels [V^t, V]."""
        policy: list[Tensor] = []
        to_go = reward
        for t in reversed(range(len(self.references))):
            q = to_go.reshape(-1, self.references[t].shape[-1])
            stretched = q if self.scale is None else q / self.scale[t].unsqueeze(-1)
            policy.insert(0, exact.solve(stretched, self.references[t], self.regularizer, beta=_BETA).log_policy)
            to_go = (policy[0].exp() * q).sum(-1)
        return policy

    def expected_update(self, policy: list[Tensor], reward: Tensor, language: Language) -> float:
        """Largest entry of the rule's expected update at a policy, by autograd through the estimators themselves."""
        logits = [level.clone().requires_grad_(True) for level in policy]
        tokens = [level.log_softmax(-1) for level in logits]
        penalty = [self.penalty(level, t) for t, level in enumerate(tokens)]
        logps = language.logps(tokens)
        surrogate = (logps.exp().detach() * (reward * logps - _BETA * language.logps(penalty))).sum()
        return max(float(g.abs().max()) for g in torch.autograd.grad(surrogate, logits))


def _as_loss(levels: list[Tensor]) -> dict[str, _AsLoss]:
    prices = [disagreement(level, _WEIGHTS) for level in levels]
    pool = [power_pool(level, _WEIGHTS, order=0.0) for level in levels]
    own = [(p + f.unsqueeze(-1)).unsqueeze(0) for p, f in zip(pool, prices)]
    weaker = [(-f).exp() for f in prices]
    return {
        "k2 as loss, pool": _AsLoss(0.107, levels, ReverseKL(_WEIGHTS), lambda token, t: 0.5 * (token - pool[t]) ** 2),
        "k3 as loss, renormalised tokens": _AsLoss(
            0.118, own, ForwardKL(), lambda token, t: k3(token, pool[t].log_softmax(-1).unsqueeze(0))
        ),
        "k3 as loss, pool": _AsLoss(
            0.553, own, ForwardKL(), lambda token, t: torch.expm1(pool[t] - token) + token - pool[t], weaker
        ),
        "k3 as loss, each reference": _AsLoss(
            0.517, levels, ForwardKL(_WEIGHTS), lambda token, t: k3(token, levels[t], _WEIGHTS)
        ),
    }


@claim(
    "online-fixed-points",
    group="exact",
    statement="Only k1 on the weighted log-ratio in the reward ends at the optimum; the other on-policy rules settle "
    "elsewhere.",
    source="DERIVED, docs/theory.md 6",
    predicts="KL to the optimum 0 for the exact rule; 0.118, 0.55, 0.163, 2.2 for the named others",
    rule="verified if every distance is within 0.005 of its predicted value and no rule moves at its fixed point",
)
def online_fixed_points(effort: Effort) -> Measurement:
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
    checks = []
    for name, (predicted, pool) in in_reward.items():
        end = (pool + reward / _BETA).log_softmax(-1)
        checks.append(near(f"{name}: KL(end‖π*)", predicted, float(kl(end, best)), 0.005 if predicted else 1e-12))
    worst = 0.0
    for name, rule in _as_loss(levels).items():
        policy = rule.settle(reward)
        checks.append(near(f"{name}: KL(end‖π*)", rule.end, float(kl(language.logps(policy), best)), 0.005))
        worst = max(worst, rule.expected_update(policy, reward, language))
    checks.append(at_most("largest expected update at the four fixed points found by backward induction", 1e-9, worst))
    note = "KL in nats per completion, direction KL(end‖optimum); only the first rule ends at the optimum."
    return Measurement(checks, note=note)
