"""Where on-policy rules settle, solved exactly: those with the penalty in the reward in closed form,
those with it as a loss by backward induction.

A penalty in the reward makes the update the exact gradient of E_π[r − β log(π/P)], so the rule ends at P e^{r/β}.
A penalty used as a loss has no return-to-go: at each prefix the update balances the expected reward of each token against
a divergence at that prefix alone (`Penalty.fixed_point`). That nothing moves there is checked through the estimators
themselves.
"""

import torch
from torch import Tensor

from multiref import exact
from multiref.divergences import kl
from multiref.pools import power_pool
from multiref.regularizers import ReverseKL
from multiref.training.online import K2Loss, K3Loss, K3PoolLoss, K3RenormalisedLoss, Penalty, levels_of, sequence_logps
from multiref_lab.claim import Effort, Findings, at_most, claim, near
from multiref_lab.toys import expected_surrogate

_BETA, _RULE, _VOCABULARY, _LENGTH = 0.5, ReverseKL((0.5, 0.5)), 4, 4
_AS_LOSS: dict[str, tuple[float, Penalty]] = {
    "k2 as loss, pool": (0.107, K2Loss()),
    "k3 as loss, renormalised tokens": (0.118, K3RenormalisedLoss()),
    "k3 as loss, pool": (0.553, K3PoolLoss()),
    "k3 as loss, each reference": (0.517, K3Loss()),
}


def _expected_update(penalty: Penalty, levels: list[Tensor], ref_levels: list[Tensor], reward: Tensor) -> float:
    """Largest entry of the rule's expected update at a policy, by autograd."""
    logits = [level.clone().requires_grad_(True) for level in levels]
    tokens = [level.log_softmax(-1) for level in logits]
    surrogate = expected_surrogate(penalty, tokens, ref_levels, reward, _RULE, beta=_BETA)
    return max(float(slope.abs().max()) for slope in torch.autograd.grad(surrogate, logits))


@claim(
    "online-fixed-points",
    group="exact",
    statement="Only k1 on the weighted log-ratio in the reward ends at the optimum; "
    "the other on-policy rules settle elsewhere.",
    source="DERIVED, docs/theory.md 6",
    predicts="KL to the optimum 0 for the exact rule; 0.118, 0.55, 0.163, 2.2 for the named others",
    rule="verified if every distance is within 0.005 of its predicted value and no rule moves at its fixed point",
)
def online_fixed_points(effort: Effort) -> Findings:
    """4 tokens, length 4, K = 2, logits 2 N(0, 1), rewards U(0, 1), seed 0."""
    generator = torch.Generator().manual_seed(0)
    rows = sum(_VOCABULARY**t for t in range(_LENGTH))
    logits = [2 * torch.randn(rows, _VOCABULARY, generator=generator, dtype=torch.float64) for _ in range(2)]
    reward = torch.rand(_VOCABULARY**_LENGTH, generator=generator, dtype=torch.float64)
    levels = levels_of(torch.stack(logits), _VOCABULARY)  # [K, V^t, V] each
    whole = sequence_logps(levels)
    best = exact.solve(reward, whole, _RULE, beta=_BETA).log_policy
    tokenwise = sequence_logps([power_pool(level, _RULE.weights, order=0.0).log_softmax(-1) for level in levels])
    in_reward = {
        "k1 in reward, pool": (0.0, power_pool(whole, _RULE.weights, order=0.0)),
        "k1 in reward, renormalised tokens": (0.089, tokenwise),
        "k1 in reward, harmonic pool (MRPO's)": (0.163, power_pool(whole, _RULE.weights, order=-1.0)),
        "k1 in reward, one reference": (2.19, whole[0]),
    }
    for name, (predicted, pool) in in_reward.items():
        end = (pool + reward / _BETA).log_softmax(-1)
        yield near(f"{name}: KL(end‖π*)", predicted, float(kl(end, best)), 0.005 if predicted else 1e-12)
    worst = 0.0
    for name, (predicted, penalty) in _AS_LOSS.items():
        settled = penalty.fixed_point(reward, levels, _RULE, beta=_BETA)
        yield near(f"{name}: KL(end‖π*)", predicted, float(kl(sequence_logps(settled), best)), 0.005)
        worst = max(worst, _expected_update(penalty, settled, levels, reward))
    yield at_most("largest expected update at the four fixed points found by backward induction", 1e-9, worst)
    yield "KL in nats per completion, direction KL(end‖optimum); only the first rule ends at the optimum."
