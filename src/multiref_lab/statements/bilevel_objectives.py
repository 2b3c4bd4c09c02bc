"""What each upper objective is worth, with nothing sampled: where its minimiser ends, in the true objective."""

from functools import partial

import torch
from torch import Tensor

from multiref.bilevel import Debiased, Likelihood, StopGradient, Upper, WinRate
from multiref.report import Estimate
from multiref.report.figures import Plot
from multiref_lab.claim import Effort, Findings, at_least, at_most, claim
from multiref_lab.races import Audit, LinearWorld, audit, best_in_class, linear_world, offline_fit
from multiref_lab.stats import bars, bootstrap_mean

_BETAS = (2.0, 0.5, 0.1)
_SEEDS = 24
_MIXED = Debiased(mixed=True)
_objective = partial(claim, group="bilevel", order=3, source="DERIVED, docs/theory.md 9")


def _realisable(beta: float) -> LinearWorld:
    """X = 6 prompts, 6 completions, 3 features, two references, reward spread √3 as in the theory's instances."""
    return linear_world(_SEEDS, beta=beta, scale=1.7, generator=torch.Generator().manual_seed(5))


def _end(world: LinearWorld, upper: Upper, starts: int, scale: float = 1.0) -> Audit:
    return audit(world, upper, starts=starts, scale=scale, generator=torch.Generator().manual_seed(1))


def _lost(upper: Upper, beta: float, starts: int, scale: float = 1.0) -> Tensor:
    """[S]: share of J* − J(pool) that the minimiser gives away."""
    world = _realisable(beta)
    return world.gap(_end(world, upper, starts, scale).log_policy) / world.gap(world.pool)


@_objective(
    "bilevel-likelihood-is-inconsistent",
    statement="The likelihood of pairs from the policy that the reward induces (the papers' upper level, U0) is not minimised "
    "by the true reward, even with infinite data.",
    predicts="a loss of the attainable gain that grows as β falls: about a tenth at β = 2, a quarter and more at β ≤ 0.5",
    rule="verified if the mean share lost over 24 problems is at least 3 % at β = 2 and 20 % at β = 0.5 and 0.1 "
    "(lower ends of 95 % intervals)",
)
def likelihood_loses(effort: Effort) -> Findings:
    shares = [bootstrap_mean(_lost(Likelihood(), beta, effort.choose(1, 3))) for beta in _BETAS]
    for beta, least, share in zip(_BETAS, (0.03, 0.2, 0.2), shares):
        yield at_least(f"share of the attainable gain lost at β = {beta:g}", least, share)
    yield Plot("β", "share of J* − J(pool) lost", [bars("likelihood", _BETAS, shares)], log_y=False)


@_objective(
    "bilevel-stop-gradient",
    statement="With the sampling law held fixed in the derivative (stop-gradient, U1, iterated RLHF) the true reward is the "
    "fixed point when it is in the class.",
    predicts="nothing lost",
    rule="verified if the share lost is at most 1e-9 on 24 problems at β = 2, 0.5 and 0.1",
)
def stop_gradient(effort: Effort) -> Findings:
    for beta in _BETAS:
        yield at_most(f"largest share lost at β = {beta:g}", 1e-9, float(_lost(StopGradient(), beta, 1).max()))


@_objective(
    "bilevel-two-labels",
    statement="Two labels a pair make the upper level consistent (debiased, U2), but on its own pairs it has degenerate "
    "minima at small β; pairs against the pool have not.",
    predicts="mixed pairs lose nothing; own pairs end degenerate at β = 0.1 once searches start afar",
    rule="verified if mixed pairs lose at most 1e-9 (median) and at least 10 % of the problems end degenerate with own pairs, "
    "at most 5 % with mixed ones",
)
def two_labels(effort: Effort) -> Findings:
    def degenerate(upper: Upper, beta: float) -> float:
        return float((_lost(upper, beta, effort.choose(2, 3), scale=3.0) > 0.05).double().mean())

    for beta in _BETAS:
        yield at_most(f"from zero, β = {beta:g}: median share lost, mixed pairs", 1e-9, float(_lost(_MIXED, beta, 1).median()))
    own = [degenerate(Debiased(), beta) for beta in _BETAS]
    yield at_least("share of searches' best ends that are degenerate at β = 0.1, own pairs", 0.1, own[2])
    yield at_most("the same with mixed pairs", 0.05, degenerate(_MIXED, 0.1))
    note = "; ".join(f"β = {beta:g}: {share:.0%} of problems end degenerate" for beta, share in zip(_BETAS, own))
    yield f"Own pairs, best of a search from zero and searches from afar: {note} (more than 5 % lost):"
    yield "a collapsed policy hides its errors."


@_objective(
    "bilevel-win-rate",
    statement="The measured win rate as upper level (U3) is best in its own measure and near the best in the true objective.",
    predicts="win rate less penalty never below the stop-gradient's; at most 15 % of the attainable gain lost in J",
    rule="verified if both hold at β = 2, 0.5 and 0.1",
)
def win_rate(effort: Effort) -> Findings:
    for beta in _BETAS:
        world = _realisable(beta)
        ends = [_end(world, upper, effort.choose(1, 3)) for upper in (StopGradient(), WinRate())]
        stopped, own = (WinRate().value(world.problem, e.log_policy, world.reward_of(e.phi)).mean(-1) for e in ends)
        measure = f"β = {beta:g}: least advantage over stop-gradient in its own measure (win rate less penalty)"
        yield at_least(measure, -1e-9, float((stopped - own).min()))
        lost = world.gap(ends[1].log_policy) / world.gap(world.pool)
        yield at_most(f"β = {beta:g}: mean share of J* − J(pool) lost", 0.15, bootstrap_mean(lost))


def _gains(beta: float, starts: int) -> dict[str, Tensor]:
    """[S] by name: share of the best-in-class gain, 8 features of which the model sees 3."""
    world = linear_world(_SEEDS, beta=beta, prompts=8, dimension=8, seen=3, generator=torch.Generator().manual_seed(6))
    generator = torch.Generator().manual_seed(1)
    base = world.true_value(world.pool)
    best = world.true_value(best_in_class(world, starts=starts, generator=generator).log_policy) - base
    uppers = {
        "likelihood": Likelihood(),
        "stop-gradient": StopGradient(),
        "debiased on mixed pairs": _MIXED,
        "win rate": WinRate(),
    }
    ends = {name: audit(world, upper, starts=starts, generator=generator) for name, upper in uppers.items()}
    ends["offline"] = offline_fit(world)
    return {name: (world.true_value(end.log_policy) - base) / best for name, end in ends.items()}


@_objective(
    "bilevel-misspecified",
    statement="With a reward class that misses the truth, iterated maximum likelihood (stop-gradient, U1) is at least as good "
    "as the bilevel likelihood (U0) and as offline fitting.",
    predicts="stop-gradient above the likelihood and above offline, more so at small β",
    rule="verified if the median difference over 24 problems is not negative at β = 2, 0.5 and 0.1 (quick: 0.5)",
)
def misspecified(effort: Effort) -> Findings:
    notes = []
    shares: dict[str, list[Estimate]] = {}
    betas = effort.choose((0.5,), _BETAS)
    for beta in betas:
        gains = _gains(beta, effort.choose(1, 3))
        for name, gain in gains.items():
            shares.setdefault(name, []).append(bootstrap_mean(gain))
        for rival, share in (("likelihood", ", share of the best gain"), ("offline", "")):
            ahead = float((gains["stop-gradient"] - gains[rival]).median())
            yield at_least(f"β = {beta:g}: median advantage of stop-gradient over {rival}{share}", 0.0, ahead)
        notes.append(f"β = {beta:g}: " + ", ".join(f"{name} {float(gain.median()):.2f}" for name, gain in gains.items()))
    curves = [bars(name, betas, estimates) for name, estimates in shares.items()]
    yield Plot("β", "share of the best-in-class gain", curves, log_y=False)
    yield "Medians: " + "; ".join(notes)
