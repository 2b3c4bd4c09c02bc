"""The stability paper's world: a known linear reward, policies log-linear in the same features,
and only the prompts are sampled.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from multiref_lab.preferences import multinomial_counts


@dataclass(frozen=True)
class KnownReward:
    """S populations of X equally likely prompts with A actions; one uniform reference, KL strength 1.

    Attributes:
        features: [S, X, A, d].
        theta: [S, d], the true parameter θ*.
    """

    features: Tensor
    theta: Tensor

    def log_policy(self, theta: Tensor) -> Tensor:
        """[S, d] → [S, X, A]: log π_θ."""
        return torch.einsum("sxad,sd->sxa", self.features, theta).log_softmax(-1)

    def regret(self, theta: Tensor) -> Tensor:
        """[S, d] → [S, X]: f_{θ*}(x) − f_θ(x) = KL(π_θ ‖ π_θ*)(x), exact, and accurate when it is tiny.

        Σ π_θ (log-ratio) loses its digits near zero; Σ π_θ (e^{−ℓ} − 1 + ℓ) is the same number, with every term positive.
        """
        log_policy = self.log_policy(theta)
        ratio = log_policy - self.log_policy(self.theta)
        return (log_policy.exp() * (torch.expm1(-ratio) + ratio)).sum(-1)

    def value(self, theta: Tensor) -> Tensor:
        """[S, d] → [S, X]: f_θ(x) = E_π[r] − KL(π‖π_ref)."""
        log_policy = self.log_policy(theta)
        reward = torch.einsum("sxad,sd->sxa", self.features, self.theta)
        uniform = torch.full_like(log_policy[..., :1], self.features.shape[-2]).log()
        return (log_policy.exp() * (reward - log_policy - uniform)).sum(-1)

    def covariance(self, theta: Tensor, prompt_weights: Tensor) -> Tensor:
        """[S, d], [S, X] (counts or probabilities, normalised here) → [S, d, d]: V_S(θ) = mean over prompts of Cov_{π_θ}[φ]."""
        p = self.log_policy(theta).exp()
        centred = self.features - torch.einsum("sxa,sxad->sxd", p, self.features).unsqueeze(-2)
        weight = p * (prompt_weights / prompt_weights.sum(-1, keepdim=True)).unsqueeze(-1)
        return torch.einsum("sxa,sxad,sxae->sde", weight, centred, centred)

    def empirical_optimum(self, prompt_counts: Tensor) -> Tensor:
        """[S, X] → [S, d]: where gradient ascent on J_S from θ = 0 ends, the projection of θ* on the column space of V_S.

        ∇J_S(θ) = V_S(θ)(θ* − θ), and the column space does not depend on θ:
        it is spanned by the training prompts' centred features.
        """
        centred = self.features - self.features.mean(-2, keepdim=True)
        gram = torch.einsum("sx,sxad,sxae->sde", (prompt_counts > 0).double(), centred, centred)
        values, vectors = torch.linalg.eigh(gram)
        inside = values > 1e-13 * values[..., -1:]
        along = torch.einsum("sde,sd->se", vectors, self.theta)
        return torch.einsum("sde,se->sd", vectors, torch.where(inside, along, 0.0))

    def first_prompts(self, samples: int) -> Tensor:
        """[S, X]: the first n prompts once each, the same for every population;
        in general position one choice is as good as another.
        """
        seeds, prompts = self.features.shape[:2]
        return (torch.arange(prompts) < samples).double().expand(seeds, prompts)

    def draw_prompts(self, samples: int, *, generator: torch.Generator) -> Tensor:
        """[S, X]: how often each prompt is among `samples` training prompts."""
        seeds, prompts = self.features.shape[:2]
        law = torch.full((seeds, prompts), 1 / prompts, dtype=torch.float64)
        return multinomial_counts(torch.full((seeds,), float(samples)), law, generator=generator)

    def ascend(self, prompt_counts: Tensor, marks: Sequence[int], *, curvature: Tensor | float = 1.0) -> Iterator[Tensor]:
        """[S, d] after each number of steps in `marks`: gradient ascent on J_S from 0, step 1/curvature,
        ∇J_S(θ) = V_S(θ)(θ* − θ).
        """
        theta, done = torch.zeros_like(self.theta), 0
        for mark in marks:
            for _ in range(mark - done):
                slope = torch.einsum("sde,se->sd", self.covariance(theta, prompt_counts), self.theta - theta)
                theta = theta + slope / curvature
            done = mark
            yield theta


def known_reward(
    seeds: int,
    *,
    prompts: int,
    actions: int,
    dimension: int,
    generator: torch.Generator,
) -> KnownReward:
    """Features in general position, of norm at most 1 (uniform directions, radii U(½, 1)), and ‖θ*‖ = 2."""
    features = torch.randn(seeds, prompts, actions, dimension, generator=generator, dtype=torch.float64)
    radius = 0.5 + 0.5 * torch.rand(seeds, prompts, actions, 1, generator=generator, dtype=torch.float64)
    features = radius * features / features.norm(dim=-1, keepdim=True)
    theta = torch.randn(seeds, dimension, generator=generator, dtype=torch.float64)
    return KnownReward(features, 2.0 * theta / theta.norm(dim=-1, keepdim=True))
