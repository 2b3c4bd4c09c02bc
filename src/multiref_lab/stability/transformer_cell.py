"""One cell of the experiment with small transformers: policies and reward models that are networks,
completions that can be counted."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from multiref import exact
from multiref.regularizers import ReverseKL
from multiref_lab.stability.fit import agreement
from multiref_lab.stability.gradient import PPO, RLOO, Ascent
from multiref_lab.stability.measures import Law, Measured, measure_policies
from multiref_lab.stability.sample import Prompts, Sample, Settings, deal
from multiref_lab.stability.training import Fit, climb, fit_pairs, pair_margins
from multiref_lab.stability.transformer import Shape


@dataclass(frozen=True)
class TransformerSettings(Settings):
    """width of policy and reward model; fewer of everything than in a log-linear class."""

    seeds: int = 8
    replaced: int = 3
    left_out: int = 2
    fresh: int = 32
    ascent_steps: int = 120
    width: int = 16
    fit_steps: int = 200

    @property
    def policy(self) -> Shape:
        return Shape(self.width)

    @property
    def reward(self) -> Shape:
        return Shape(self.width, outputs=1)

    @property
    def fit(self) -> Fit:
        return Fit(steps=self.fit_steps)

    def ascents(self) -> tuple[Ascent, ...]:
        """Smaller steps than in a log-linear class, and fewer prompts a batch."""
        return tuple(replace(a, batch=16, steps=self.ascent_steps, rate=0.005) for a in (PPO, RLOO))


def draw_transformer(settings: TransformerSettings) -> tuple[Sample, Tensor]:
    """The data, and the parameters [S, P] of the first reference, from which every policy starts.

    References are two random transformers of the policy's width. The reward is additive in tokens and neighbouring tokens,
    with weights that depend on the prompt:

        r*(x, y) ∝ Σ_t ⟨A_t[y_t], x⟩ + Σ_t B[y_t, y_{t+1}],   scaled to variance one
    """
    generator = torch.Generator().manual_seed(104729 * settings.seed + 29)
    shape, seeds = settings.policy, settings.seeds
    start = [shape.initial(seeds, generator, spread=1.5) for _ in range(2)]
    tokens = shape.completions()
    taste = torch.randn(seeds, shape.length, shape.vocabulary, shape.content, generator=generator, dtype=torch.float64)
    follow = torch.randn(seeds, shape.vocabulary, shape.vocabulary, generator=generator, dtype=torch.float64)

    def world(rows: slice) -> Prompts:
        content = torch.randn(seeds, rows.stop - rows.start, shape.content, generator=generator, dtype=torch.float64)
        own = taste[:, torch.arange(shape.length), tokens].sum(2)  # [S, Y, c]
        reward = torch.einsum("syc,sfc->sfy", own, content) + follow[:, tokens[:, :-1], tokens[:, 1:]].sum(-1).unsqueeze(1)
        reward = reward / (shape.content * shape.length + shape.length - 1) ** 0.5
        refs = torch.stack([shape.all_logps(parameters, content) for parameters in start])
        return Prompts(content.unsqueeze(2), reward, refs)

    return deal(settings, world, generator), start[0]


def measure_transformer(settings: TransformerSettings) -> Measured:
    """As `measure_linear`."""
    sample, start = draw_transformer(settings)
    trained = _Trained(settings, sample, start)
    reward_model = trained.reward_model()
    found: Measured = {}
    if settings.left_out:
        found["influence/reward model"] = _influence(settings, sample, reward_model, settings.reward, None, trained.no_tilt)
    for references in (1, 2):
        policies = trained.policies(reward_model, references)
        found |= measure_policies(policies, sample, references, beta=settings.beta, most=64)
        if references == 1 and settings.left_out:
            tilt = trained.tilt(1)
            found["influence/dpo/1"] = _influence(settings, sample, policies["dpo"][0], settings.policy, settings.beta, tilt)
    return found


class _Trained:
    """Everything trained on one sample."""

    def __init__(self, settings: TransformerSettings, sample: Sample, start: Tensor) -> None:
        self.settings, self.sample, self.start = settings, sample, start
        self.no_tilt = torch.zeros_like(sample.preferred, dtype=torch.float64)

    def tilt(self, references: int) -> Tensor:
        """[S, N]: −β Δ log P."""
        return -self.settings.beta * self.sample.difference(self.sample.prompts.pool(references))

    def reward_model(self) -> Tensor:
        """[S, M, P]."""
        settings, generator = self.settings, torch.Generator().manual_seed(31 + self.settings.seed)
        start = settings.reward.initial(settings.seeds, generator, spread=0.1)
        return fit_pairs(self.sample, settings.reward, start, settings.fit, beta=None, tilt=self.no_tilt, seed=settings.seed)

    def policies(self, reward_model: Tensor, references: int) -> dict[str, tuple[Tensor, Law]]:
        """{method: (parameters [S, M, P], the law that they have)}; the Gibbs policy's parameters are the reward model's."""
        settings, sample, shape = self.settings, self.sample, self.settings.policy
        beta, seed, tilt = settings.beta, settings.seed, self.tilt(references)

        def gibbs(parameters: Tensor, prompts: Prompts) -> Tensor:
            rewards = _everywhere(settings.reward.all_rewards, parameters, prompts)
            refs = prompts.ref_logps[:references].unsqueeze(2).expand(-1, -1, rewards.shape[1], -1, -1)
            return exact.solve(rewards, refs, ReverseKL(), beta=beta).log_policy

        network = partial(_everywhere, shape.all_logps)
        dpo = fit_pairs(sample, shape, self.start, settings.fit, beta=beta, tilt=tilt, seed=seed)
        found: dict[str, tuple[Tensor, Law]] = {"dpo": (dpo, network), "gibbs": (reward_model, gibbs)}
        learned, pool = partial(settings.reward.rewards, reward_model.flatten(0, 1)), sample.prompts.pool(references)
        for ascent in settings.ascents():
            found[ascent.name] = climb(sample, shape, self.start, learned, pool, ascent, beta=beta, seed=seed), network
        return found


@torch.no_grad()
def _everywhere(values: Callable[[Tensor, Tensor], Tensor], parameters: Tensor, prompts: Prompts) -> Tensor:
    """[S, M, P] → [S, M, F, Y]: what networks say of every completion of each prompt."""
    content = prompts.features[:, :, 0].repeat_interleave(parameters.shape[1], 0)
    return torch.unflatten(values(parameters.flatten(0, 1), content), 0, parameters.shape[:2])


def _influence(
    settings: TransformerSettings, sample: Sample, parameters: Tensor, shape: Shape, beta: float | None, tilt: Tensor
) -> dict[str, list[float]]:
    """Predicted against true changes of margins on fresh prompts when a pair is left out, by the Gauss–Newton curvature of the
    full run."""
    runs, n, completions = sample.runs, sample.runs.samples, shape.completions()
    gone = runs.changed[1 + runs.replaced : -1]
    margins = pair_margins(shape, beta=beta)
    content = sample.prompts.features[:, :n, 0]
    fresh = sample.fresh.features[:, :, 0]
    first, last = completions[:1].expand(fresh.shape[1], -1), completions[-1:].expand(fresh.shape[1], -1)
    none = torch.zeros(fresh.shape[1], dtype=torch.float64)
    predicted, true = [], []
    for s in range(len(parameters)):
        pairs = (completions[sample.preferred[s, :n]], completions[sample.other[s, :n]], tilt[s, :n])
        m, jacobian = _per_pair(margins, parameters[s, 0], content[s], *pairs)
        _, across = _per_pair(margins, parameters[s, 0], fresh[s], first, last, none)
        predicted.append(gauss_newton(jacobian, across, m, settings.fit.ridge)[:, gone].T)
        several = parameters[s, [0, *range(1 + runs.replaced, runs.count - 1)]]
        args = (fresh[s], first, last, none)
        with torch.no_grad():
            at = margins(several, *(x.expand(len(several), *x.shape) for x in args))
        true.append(at[1:] - at[0])
    return agreement(torch.stack(predicted), torch.stack(true))


def gauss_newton(jacobian: Tensor, across: Tensor, margins: Tensor, ridge: float) -> Tensor:
    r"""[n, P], [F, P], [n] → [F, n]: how leaving pair i out would move margin z, to first order in a network linearised where
    it stands.

        δm(z) = −σ(−m_i) J_z (ridge·I + Σ_j σ'(m_j) J_jᵀ J_j)⁻¹ J_iᵀ

    Solved in the n pairs, not in the P parameters. Exact to first order for a linear model at its optimum;
    a network that stopped before it is neither.
    """
    p: Tensor = torch.sigmoid(-margins)
    kernel = jacobian @ jacobian.T
    towards = across @ jacobian.T
    solved: Tensor = (towards - towards @ torch.linalg.solve(kernel + torch.diag(ridge / (p * (1 - p))), kernel)) / ridge
    return -solved * p


def _per_pair(margins: Any, parameters: Tensor, *rows: Tensor) -> tuple[Tensor, Tensor]:
    """Margins [B] and their gradients [B, P]: every pair is a run of its own with the same parameters."""
    leaf = parameters.expand(len(rows[0]), -1).clone().requires_grad_()
    values = margins(leaf, *(x.unsqueeze(1) for x in rows))[:, 0]
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    return values.detach(), gradient
