"""Bradley–Terry preferences as counts: n labelled pairs from any law, without drawing them one by one.

A data set of n pairs enters a likelihood only through how often each unordered pair of completions was shown and how often its
first won. So the counts are drawn instead, by splitting n down a binary tree of binomials: the cost does not depend on n.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from multiref.errors import ArgumentError


@dataclass(frozen=True)
class PairCounts:
    """Labelled pairs as sufficient statistics.

    Attributes:
        first, second: [P] completion indices, first < second, all unordered pairs.
        wins: [*S, X, P] how often the first was preferred.
        losses: [*S, X, P] how often the second was.
    """

    first: Tensor
    second: Tensor
    wins: Tensor
    losses: Tensor

    def __add__(self, other: "PairCounts") -> "PairCounts":
        """Both data sets as one."""
        return PairCounts(self.first, self.second, self.wins + other.wins, self.losses + other.losses)


def pair_indices(completions: int) -> tuple[Tensor, Tensor]:
    """[P], [P]: all unordered pairs of completions, P = Y(Y − 1)/2."""
    first, second = torch.triu_indices(completions, completions, offset=1)
    return first, second


def pair_information(features: Tensor, weight: Tensor) -> Tensor:
    r"""[*E, Y, d], [*E, Y, Y] symmetric → [*E, d, d]: Σ_{y, y'} w(y, y') Δφ Δφᵀ, Δφ = φ(y) − φ(y'), a pair in both orders."""
    own = features.mT @ (weight.sum(-1, keepdim=True) * features)
    return 2 * (own - features.mT @ weight @ features)


def multinomial_counts(total: Tensor, probs: Tensor, *, generator: torch.Generator) -> Tensor:
    r"""[*S], [*S, C] → [*S, C]: how `total` draws fall on C outcomes (float64 whole numbers), exactly multinomial.

    The outcomes are halved again and again; each half's count is binomial given the whole's.
    """
    outcomes = probs.shape[-1]
    leaves = 1 << max(outcomes - 1, 0).bit_length()
    mass = [torch.nn.functional.pad(probs.double(), (0, leaves - outcomes))]
    while mass[-1].shape[-1] > 1:
        mass.append(mass[-1].unflatten(-1, (-1, 2)).sum(-1))
    counts = total.double().unsqueeze(-1).expand(mass[-1].shape).contiguous()
    for level in reversed(mass[:-1]):
        pair = level.unflatten(-1, (-1, 2))
        share = (pair[..., 0] / pair.sum(-1).clamp_min(torch.finfo(torch.float64).tiny)).clamp(0, 1)
        left = torch.binomial(counts, share, generator=generator)
        counts = torch.stack((left, counts - left), -1).flatten(-2)
    return counts[..., :outcomes]


def sample_pairs(
    reward: Tensor | None,
    law_logps: Tensor,
    samples: int | Tensor,
    *,
    generator: torch.Generator,
    prompt_logps: Tensor | None = None,
    preference: Tensor | None = None,
    second_logps: Tensor | None = None,
) -> PairCounts:
    r"""[*S, X, Y], [*S, X, Y] → counts of `samples` pairs: prompt from `prompt_logps`, both completions from the law,
    label from Bradley–Terry.

        P(first ≻ second) = σ(r(first) − r(second))

    A pair of the same completion twice teaches nothing and is counted among the samples but not among the counts,
    as in a data set.

    Args:
        samples: n, one number or [*S].
        law_logps: the normalised sampling law per prompt: an escort, a mixture of references, uniform, or any other.
        prompt_logps: [*S, X]; None is uniform.
        preference: [*S, X, Y, Y], P(first ≻ second) of any preference, instead of a reward (None).
        second_logps: the law of the second completion of a pair, where it is another than the first's.

    Raises:
        ArgumentError: samples not positive, shapes that do not match, a law that is not normalised.
    """
    if not bool((torch.as_tensor(samples) > 0).all()):
        raise ArgumentError(f"samples: found {samples}, expected a positive number; give the number of labelled pairs")
    given = reward if preference is None else preference[..., 0]
    if given is None or given.shape != law_logps.shape or given.ndim < 2:
        found = None if given is None else tuple(given.shape)
        raise ArgumentError(f"law_logps: found shape {tuple(law_logps.shape)}, expected the problem's, [*S, X, Y] = {found}")
    law = law_logps.double().exp()
    other = law if second_logps is None else second_logps.double().exp()
    if not bool((torch.maximum((law.sum(-1) - 1).abs(), (other.sum(-1) - 1).abs()) < 1e-6).all()):
        raise ArgumentError("law_logps: found a law that does not sum to one; normalise it with log_softmax")
    prompts = law.shape[-2]
    prompt_law = (
        torch.full(law.shape[:-1], 1 / prompts, dtype=torch.float64) if prompt_logps is None else prompt_logps.double().exp()
    )
    first, second = pair_indices(law.shape[-1])
    either = law[..., first] * other[..., second] + law[..., second] * other[..., first]
    shown = prompt_law.unsqueeze(-1) * either  # [*S, X, P]; what is missing to one are the ties
    flat = shown.flatten(-2)
    cells = torch.cat((flat, (1 - flat.sum(-1, keepdim=True)).clamp_min(0)), -1)
    total = torch.as_tensor(samples, dtype=torch.float64).expand(law.shape[:-2])
    counts = multinomial_counts(total, cells, generator=generator)[..., :-1].reshape(shown.shape)
    if preference is not None:
        chance = preference.double()[..., first, second]
    else:
        assert reward is not None
        chance = torch.sigmoid(torch.where(counts > 0, reward[..., first] - reward[..., second], 0.0).double())
    wins = torch.binomial(counts.contiguous(), chance.contiguous(), generator=generator)
    return PairCounts(first, second, wins, counts - wins)
