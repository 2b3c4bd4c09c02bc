"""RLHF variants in a log-linear class, all runs at once: DPO, a reward model with its Gibbs optimum,
and with sampled policy gradients."""

from dataclasses import dataclass

import torch
from torch import Tensor

from multiref_lab.stability.fit import fit
from multiref_lab.stability.gradient import Ascent, adam, draws
from multiref_lab.stability.sample import Prompts, Sample


@dataclass(frozen=True)
class LogLinear:
    """π ∝ base e^{⟨w, φ⟩}, parameter w [S, M, d]; base: the pool of the first `pooled` references,
    or the first reference alone (pooled = 1)."""

    parameter: Tensor
    pooled: int

    def law(self, parameter: Tensor, prompts: Prompts) -> Tensor:
        """[S, M, F, Y] at another parameter."""
        tilt = torch.einsum("sfyd,smd->smfy", prompts.features, parameter)
        return (prompts.pool(self.pooled).unsqueeze(1) + tilt).log_softmax(-1)

    def log_policy(self, prompts: Prompts) -> Tensor:
        """[S, M, F, Y]."""
        return self.law(self.parameter, prompts)


def reward_model(sample: Sample, *, ridge: float) -> Tensor:
    """[S, M, d]: θ̂ of r̂ = ⟨θ̂, φ⟩, Bradley–Terry maximum likelihood with (ridge/2)‖θ‖²."""
    return fit(sample.delta(), _weights(sample), ridge=ridge)


def gibbs(theta: Tensor, references: int, *, beta: float) -> LogLinear:
    """The exact optimum for r̂: π ∝ P e^{r̂/β}."""
    return LogLinear(theta / beta, references)


def dpo(sample: Sample, references: int, *, beta: float, ridge: float) -> LogLinear:
    r"""Maximum likelihood of the implicit reward β log(π_w/P) in the class π_w ∝ π_1 e^{⟨w, φ⟩},
    which starts at the first reference.

        m = β (⟨w, Δφ⟩ + Δ log π_1 − Δ log P)

    With one reference P = π_1 and this is `gibbs` to the last digit. With several, the class holds the Gibbs optimum only where
    log π_1 − log P is linear in the features.
    """
    scaled = fit(sample.delta(), _weights(sample), offset=dpo_offset(sample, references, beta=beta), ridge=ridge)
    return LogLinear(scaled / beta, 1)


def dpo_offset(sample: Sample, references: int, *, beta: float) -> Tensor:
    """[S, N]: β Δ(log π_1 − log P), the part of DPO's margin that no parameter moves."""
    prompts = sample.prompts
    return beta * sample.difference(prompts.pool(1) - prompts.pool(references))


def climb(sample: Sample, theta: Tensor, references: int, ascent: Ascent, *, beta: float, seed: int) -> LogLinear:
    r"""Policy gradient on E_π[⟨θ̂, φ⟩ − β log(π/P)] over the training prompts, π_w ∝ π_1 e^{⟨w, φ⟩} from w = 0, by Adam.

    Prompts and completions are sampled with the same uniforms in every run of a seed, so that what differs is what the example
    did.
    """
    prompts, runs = sample.prompts, sample.runs
    seeds = theta.shape[0]
    base, tilt = prompts.pool(1), prompts.pool(1) - prompts.pool(references)
    w = torch.zeros_like(theta)
    descend = adam(w, ascent.rate, ascent.steps)
    batches = draws(runs, seeds, ascent.batch, ascent.batch, ascent.group, seed=seed)
    at = torch.arange(seeds)[:, None, None]
    for step in range(ascent.steps):
        if step % ascent.updates == 0:
            rows, uniforms = next(batches)
            features = _Gathered(prompts.features, rows)
            start = base[at, rows]
            old = (start + features.times(w)).log_softmax(-1)
            chosen = (uniforms.unsqueeze(-1) > old.exp().cumsum(-1).unsqueeze(-2)).sum(-1).clamp(max=old.shape[-1] - 1)
            net = features.times(theta) - beta * (old - start + tilt[at, rows])
            advantages = ascent.advantages(net.gather(-1, chosen))
        policy = (start + features.times(w)).log_softmax(-1)
        ratio = ascent.kept((policy - old).gather(-1, chosen).exp(), advantages)
        share = (advantages * ratio) / (ascent.batch * ascent.group)
        pull = torch.zeros_like(policy).scatter_add(-1, chosen, share)
        descend(-features.transposed(pull - pull.sum(-1, keepdim=True) * policy.exp()))
    return LogLinear(w, 1)


def _weights(sample: Sample) -> Tensor:
    return sample.runs.weights.expand(len(sample.preferred), -1, -1)


class _Gathered:
    """Features of the prompts that each run draws, held once for all runs and apart where a run draws another:
    [S, B, Y, d] and a few rows."""

    def __init__(self, features: Tensor, rows: Tensor) -> None:
        seeds = torch.arange(len(features))
        self.common = features[seeds[:, None], rows[:, 0]]
        self.where = (rows != rows[:, :1]).nonzero(as_tuple=True)
        s, m, b = self.where
        self.apart = features[s, rows[s, m, b]]

    def times(self, w: Tensor) -> Tensor:
        """[S, M, d] → [S, M, B, Y]: ⟨w, φ⟩."""
        values = torch.einsum("sbyd,smd->smby", self.common, w)
        s, m, _ = self.where
        values[self.where] = torch.einsum("qyd,qd->qy", self.apart, w[s, m])
        return values

    def transposed(self, pull: Tensor) -> Tensor:
        """[S, M, B, Y] → [S, M, d]: Σ pull φ."""
        s, m, _ = self.where
        extra = torch.einsum("qyd,qy->qd", self.apart, pull[self.where])
        rest = pull.clone()
        rest[self.where] = 0
        total = torch.einsum("smby,sbyd->smd", rest, self.common)
        return total.index_put((s, m), extra, accumulate=True)
