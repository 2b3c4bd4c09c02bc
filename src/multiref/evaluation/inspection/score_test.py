"""Does one more reference help? A one-sided score test, with prompts as the units; by sign flips, so exact in small data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import torch
from torch import Tensor

from multiref.errors import ArgumentError
from multiref.evaluation.inspection.evidence import Evidence
from multiref.weighting import fit_preferences

POWER = 0.9  # of a plan
FEWEST = 9  # prompts: |z| cannot exceed √G, and G sign flips have no probability below 2^−G
FLIPS = 2**14 - 1  # drawn where there are more than can be listed
BLOCKS = 2048  # prompts that flip apart; of more, some flip together, which is as exact
_LISTED = 14  # prompts up to which all 2^G flips are listed
RIDGE = 1e-2
COPY = 1e-6  # margins that others explain but for so much, as a share, are theirs


@dataclass(frozen=True)
class ScoreTest:
    """One reference tested for what it adds to others.

    given: those others. z: the statistic, about normal where the reference adds nothing. p: probability of so large a z
    under that; p_opposite: of so small a one. z_without_length: the same with the part removed that the difference of tokens
    explains. inflation: clustered variance of the score over its information; 1 for independent pairs.
    """

    name: str
    given: tuple[str, ...]
    z: float
    p: float
    p_opposite: float
    z_without_length: float
    inflation: float


def try_additions(evidence: Evidence, candidates: Sequence[int], chosen: Sequence[int]) -> list[ScoreTest]:
    """Each candidate against the fit of the chosen ones (less itself), all under the same sign flips.

    With η the fit's logits, m_k the candidate's margins scaled to mean square 1, and a its projection on the references whose
    coefficient is free (not at 0) in the metric σ(η)σ(−η):

        u_j = (m_kj − aᵀ m_cj) σ(−η_j),     s_g = Σ_{j of prompt g} u_j,     z = Σ_g s_g / √(Σ_g s_g²)
        p = P(Σ_g ε_g s_g ≥ Σ_g s_g),  ε_g = ±1 with equal chance

    Where nothing is chosen, exchanging chosen and rejected turns the sign of s_g, so under "these margins say nothing about
    the preferences" p is exact whatever their distribution. Otherwise it is exact in the limit of many prompts.

    Source: DERIVED; Rao's score test, clustered; sign flips: Winkler et al., 2014.
    """
    sums, tests = [], []
    for k in candidates:
        others = [j for j in chosen if j != k]
        terms, information = _score_terms(evidence.margins, others, k)
        cluster = _by_prompt(terms, evidence.groups)
        apart, _ = _score_terms(evidence.margins, others, k, tokens=evidence.longer[k])
        sums.append(cluster)
        names = tuple(evidence.names[j] for j in others)
        inflation = float(cluster.square().sum()) / max(information, 1e-300)
        z_apart = _standardise(_by_prompt(apart, evidence.groups))
        tests.append((evidence.names[k], names, _standardise(cluster), z_apart, inflation))
    above, below = _flip_signs(torch.stack(sums))
    return [
        ScoreTest(name, given, z, float(p), float(q), apart, inflation)
        for (name, given, z, apart, inflation), p, q in zip(tests, above, below, strict=True)
    ]


def _score_terms(margins: Tensor, chosen: list[int], candidate: int, *, tokens: Tensor | None = None) -> tuple[Tensor, float]:
    """u [P] and its information Σ_j (m_kj − aᵀ m_cj)² σ(η_j)σ(−η_j). `tokens` [P]: a nuisance of either sign."""
    x = margins / margins.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-300)
    nuisance, free = x[chosen], torch.ones(len(chosen), dtype=torch.bool)
    if tokens is not None and bool(tokens.any()):
        scaled = (tokens / tokens.square().mean().sqrt())[None]
        nuisance = torch.cat([nuisance, scaled, -scaled])
    if len(nuisance):
        coefficients = fit_preferences(nuisance, ridge=RIDGE).coefficients
        eta, free = coefficients @ nuisance, coefficients > 0
        if len(nuisance) > len(chosen):  # the two signs of one direction: projected on once, also where its coefficient is 0
            free[len(chosen)], free[len(chosen) + 1] = True, False
    else:
        eta = torch.zeros_like(x[candidate])
    wrong = torch.sigmoid(-eta)
    weight, direction = wrong * (1 - wrong), x[candidate]
    if bool(free.any()):
        basis = nuisance[free]
        inverse = torch.linalg.pinv((basis * weight) @ basis.T, hermitian=True)  # no ridge: of margins that separate it is most
        direction = direction - inverse @ ((basis * weight) @ direction) @ basis
        if direction.norm() < COPY * x[candidate].norm():
            direction = torch.zeros_like(direction)
    return direction * wrong, float((direction.square() * weight).sum())


def _by_prompt(terms: Tensor, groups: Tensor) -> Tensor:
    return torch.zeros(int(groups.max()) + 1, dtype=torch.float64).index_add_(0, groups, terms)


def _standardise(sums: Tensor) -> float:
    norm = float(sums.norm())
    return float(sums.sum()) / norm if norm > 0 else 0.0


def _flip_signs(sums: Tensor) -> tuple[Tensor, Tensor]:
    """[C, G] → p of so large a sum, and of so small a one, [C] each, over sign flips of the G columns.

    All 2^G flips where those are few; else FLIPS random ones and the data's own, which keeps the test's level exactly.
    """
    prompts = sums.shape[1]
    if prompts > BLOCKS:
        block = torch.randint(BLOCKS, (prompts,), generator=torch.Generator().manual_seed(0))
        sums = torch.zeros(len(sums), BLOCKS, dtype=sums.dtype).index_add_(1, block, sums)
    signs = _signs(sums.shape[1])
    seen, room = sums.sum(-1), 1e-12 * sums.abs().sum(-1)
    flipped = torch.cat([part.double() @ sums.T for part in signs.split(1024)])
    return (flipped >= seen - room).double().mean(0), (flipped <= seen + room).double().mean(0)


@lru_cache(maxsize=1)
def _signs(prompts: int) -> Tensor:
    """[flips, G] of ±1: every one, or random ones after the data's own. Fixed, so that a verdict is a function of the data."""
    if prompts <= _LISTED:
        return 1 - 2 * ((torch.arange(2**prompts)[:, None] >> torch.arange(prompts)) % 2).to(torch.int8)
    generator = torch.Generator().manual_seed(1)
    return torch.cat([torch.ones(1, prompts), 1 - 2 * torch.randint(2, (FLIPS, prompts), generator=generator)]).to(torch.int8)


# ---- how many pairs one would need to see an effect ----


@dataclass(frozen=True)
class SampleSize:
    """A reference, what it is added to, and how many pairs show the effect at 90 % power; inf where it points the other way."""

    name: str
    given: tuple[str, ...]
    pairs: float


def plan_pairs(tests: Sequence[ScoreTest], *, pairs: int, significance: float, gain: float | None = None) -> list[SampleSize]:
    """Pairs needed to see each reference's effect, with as many pairs a prompt as there are now.

    z grows as √P, so an effect that gave z at P pairs gives q + q_power, q = Φ⁻¹(1 − significance), at

        P' = P ((q + q_power) / z)²

    and one of g nats a pair, for which z² ≈ 2 g P / inflation, at P' = inflation (q + q_power)² / 2g.

    Args:
        tests: of the references; pairs: P.
        significance: one-sided, of each test.
        gain: g, the size named; None: the size found. (The size found is an estimate; so is what comes out.)

    Errors: ArgumentError for a gain that is not above 0.
    """
    if gain is not None and not gain > 0:
        raise ArgumentError(f"gain is {gain}; expected nats per pair above 0.")
    reach = NormalDist().inv_cdf(1 - significance) + NormalDist().inv_cdf(POWER)

    def needed(test: ScoreTest) -> float:
        """P′ of one test; infinite where the effect found is none."""
        if gain is not None:
            if test.inflation == 0:  # of margins that say nothing
                return math.inf
            return math.ceil(test.inflation * reach**2 / (2 * gain))
        return math.ceil(pairs * (reach / test.z) ** 2) if test.z > 0 else math.inf

    return [SampleSize(test.name, test.given, needed(test)) for test in tests]
