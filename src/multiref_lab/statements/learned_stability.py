"""Stability with a learned reward: replace one preference pair, fit again, compare."""

from functools import partial

import torch
from torch import Tensor

from multiref import bounds, exact
from multiref.regularizers import ReverseKL
from multiref.report.figures import Plot
from multiref_lab.claim import Effort, Findings, claim, exactly, near
from multiref_lab.estimators import logistic_mle
from multiref_lab.preferences import PairCounts, sample_pairs
from multiref_lab.problems import LinearBandits, linear_bandits
from multiref_lab.stats import along, fit_slope, fitted, log_spaced

_learned = partial(claim, group="stability", source="DERIVED, theory, online-and-generalisation 5.6")


def replace_one(problem: LinearBandits, counts: PairCounts, law_logps: Tensor, *, generator: torch.Generator) -> PairCounts:
    """The same data sets with one pair, drawn among those present, replaced by a fresh one.

    Pairs of one completion with itself are left out.
    """
    difference = problem.reward[..., counts.first] - problem.reward[..., counts.second]
    shown = (law_logps[..., counts.first] + law_logps[..., counts.second]).exp()
    fresh = torch.cat((shown * torch.sigmoid(difference), shown * torch.sigmoid(-difference)), -1).flatten(-2)
    present = torch.cat((counts.wins, counts.losses), -1)
    out = torch.multinomial(present.flatten(-2), 1, generator=generator)
    new = torch.multinomial(fresh, 1, generator=generator)
    one = torch.ones_like(out, dtype=torch.float64)
    changed = present.flatten(-2).scatter_add(-1, out, -one).scatter_add(-1, new, one).reshape(present.shape)
    wins, losses = changed.chunk(2, -1)
    return PairCounts(counts.first, counts.second, wins, losses)


def _replacements(effort: Effort) -> tuple[list[int], dict[str, Tensor], LinearBandits]:
    """Numbers of pairs n; at each, [S, P]: how far one replacement moves the parameter and the value,
    and how far the fit is off.
    """
    generator = torch.Generator().manual_seed(91)
    problem = linear_bandits(effort.choose(60, 2000), prompts=4, completions=6, dimension=5, generator=generator)
    law = problem.law("uniform")
    sizes = log_spaced(effort.choose(1_000, 100), 10_000, effort.choose(4, 9))
    rows = []
    for size in sizes:
        counts = sample_pairs(problem.reward, law, size, generator=generator)
        first = logistic_mle(problem.features, counts, ridge=1e-3).theta
        other = replace_one(problem, counts, law, generator=generator)
        second = logistic_mle(problem.features, other, ridge=1e-3, start=first).theta
        moved = (_value(problem, first) - _value(problem, second)).abs()
        off = (first - problem.theta).norm(dim=-1)
        rows.append(torch.stack(((first - second).norm(dim=-1), moved.amax(-1), moved.mean(-1), off)))
    return sizes, dict(zip(("parameter", "largest", "mean", "error"), torch.stack(rows, -1))), problem


def _value(problem: LinearBandits, theta: Tensor) -> Tensor:
    """[S, d] → [S, X]: the regularised value, β = 1, of the Gibbs policy for ⟨θ, φ⟩ under the true reward."""
    policy = exact.solve(problem.reward_of(theta), problem.ref_logps, ReverseKL(), beta=1.0).log_policy
    return exact.value(policy, problem.reward, problem.ref_logps, ReverseKL(), beta=1.0)


def _pair_curvature(problem: LinearBandits) -> float:
    """Least eigenvalue of the covariance of feature differences under uniform pairs, over all problems."""
    centred = problem.features - problem.features.mean(-2, keepdim=True)
    covariance = 2 * torch.einsum("sxyd,sxye->sde", centred, centred) / (centred.shape[1] * centred.shape[2])
    return float(torch.linalg.eigvalsh(covariance)[:, 0].min())


@_learned(
    "learned-reward-parameter-stability",
    statement="With a learned linear reward, replacing one pair moves the parameter by O(1/n).",
    predicts="slope −1; within 4L/(μn)",
    rule="verified if the slope is within 0.1 and no replacement is above the bound",
)
def learned_parameter(effort: Effort) -> Findings:
    sizes, found, problem = _replacements(effort)
    slope, curve = fitted("one pair replaced", sizes, found["parameter"])
    norm = float(problem.features.norm(dim=-1).max())
    radius, curvature = float(problem.theta.norm(dim=-1).max()) * 2, _pair_curvature(problem)
    bound = bounds.learned_reward_parameter(samples=1, feature_norm=norm, radius=radius, pair_curvature=curvature)
    line = along("4L/(μn) (derived), worst problem", bound, sizes)
    above = int((found["parameter"] > torch.tensor(line.y, dtype=torch.float64)).sum())
    yield near("slope", -1, slope, effort.choose(0.2, 0.1))
    yield exactly("replacements above the bound", 0, above)
    yield Plot("preference pairs n", "‖θ̂_S − θ̂_S'‖", (curve, line))


@_learned(
    "learned-reward-value-stability",
    statement="With a learned linear reward, replacing one pair moves the value by O(n^{−3/2}) (realisable, covered).",
    predicts="slope −3/2, at the worst prompt and on average",
    rule="verified if both slopes are within 0.15 and the error's is −½ within 0.1",
)
def learned_value(effort: Effort) -> Findings:
    sizes, found, _ = _replacements(effort)
    curves = []
    for name in ("largest", "mean"):
        slope, curve = fitted(f"{name} over prompts", sizes, found[name])
        yield near(f"slope of the {name} over prompts", -1.5, slope, effort.choose(0.25, 0.15))
        curves.append(curve)
    yield near("slope of ‖θ̂ − θ*‖", -0.5, fit_slope(sizes, found["error"]), effort.choose(0.15, 0.1))
    yield Plot("preference pairs n", "|f_S(x) − f_S'(x)|", curves)
    yield "Log-linear DPO is this maximum likelihood in another letter: its stability is the same number."
