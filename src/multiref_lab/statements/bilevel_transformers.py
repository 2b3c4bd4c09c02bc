"""Whether what exact sums say of the upper objectives holds for transformers that are trained on sampled labels."""

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from multiref.report import Estimate
from multiref.report.figures import Plot
from multiref.training.iterative import Bilevel, Plan, train
from multiref_lab.claim import Effort, Measurement, at_least, claim
from multiref_lab.curves import bars
from multiref_lab.races import enumerable_world
from multiref_lab.stats import bootstrap_mean
from multiref_lab.toys import Size

Objective = Literal["likelihood", "stop_gradient", "debiased", "win_rate"]
_SEEDS = 20
_bilevel = partial(claim, group="bilevel", order=4, source="DERIVED, docs/theory.md 9, extended")


def _share_left(objective: Objective, beta: float, size: Size, effort: Effort) -> Tensor:
    """[S]: (J* − J(π))/(J* − J(π_1)) at the end of training, exact; every seed its own world of two transformer references."""
    seed = effort.choose(0, 1)  # limits were set on worlds of seed 0
    world = enumerable_world(_SEEDS, size, beta=beta, worlds=_SEEDS, world_seed=seed)
    labels, rounds, steps = effort.choose((1500, 30, 5), (4000, 40, 12))
    counts = [round(labels * (k + 1) / rounds) for k in range(rounds)]
    plan = Plan(
        labels=counts,
        steps=steps,
        prompts=16,
        rollouts=4,
        measure_at=[labels],
        learning_rate=1e-2,
        final_rate=0.1,
        reward_rate=0.1,
    )
    _, history = train(world.task, Bilevel(objective, "covariance"), plan)
    return torch.tensor(history.lines[-1]["gap"]).double() / torch.tensor(history.lines[0]["gap"]).double()


def _compared(effort: Effort, seen: tuple[int | None, int | None], more_left: float) -> Measurement:
    """By β: what each objective leaves, and that the likelihood leaves at least `more_left` more than the stop-gradient at β ≤
    ½.
    """
    betas = effort.choose((0.5,), (2.0, 0.5, 0.1))
    names: tuple[Objective, ...] = ("likelihood", "stop_gradient", "debiased", "win_rate")
    size = effort.choose(Size(8, 3, 2, 12, 4, seen[0]), Size(16, 4, 3, 16, 8, seen[1]))
    ends: dict[str, list[Estimate]] = {}
    checks, notes = [], []
    for beta in betas:
        shares = {name: _share_left(name, beta, size, effort) for name in names[: effort.choose(2, 4)]}
        said = []
        for name, share in shares.items():
            label = name.replace("_", " ")
            ends.setdefault(label, []).append(bootstrap_mean(share))
            said.append(f"{label} {float(share.mean()):.3f} (median {float(share.median()):.3f})")
        notes.append(f"β = {beta:g}: " + ", ".join(said))
        if beta <= 0.5:
            more = bootstrap_mean(shares["likelihood"] - shares["stop_gradient"])
            checks.append(
                at_least(f"β = {beta:g}: share of the gap that likelihood leaves beyond stop gradient", more_left, more)
            )
    note = f"Share of J* − J(start) left, means over {_SEEDS} worlds: " + "; ".join(notes) + "."
    curves = [bars(label, betas, each) for label, each in ends.items()]
    return Measurement(checks, Plot("β", "share of the gap left", curves, log_y=False), note)


@_bilevel(
    "bilevel-transformers",
    statement="Transformers trained on sampled labels lose by the papers' upper objective (likelihood, U0) too: it ends "
    "farther from the optimum than iterated likelihood (stop-gradient, U1).",
    predicts="likelihood leaves at least 5 % of the gap more than stop-gradient at β = 0.5 and 0.1; at β = 2, where exact "
    "sums say 1.5 %, no difference that labels could show",
    rule="verified if the lower ends of the 95 % intervals of the paired difference are at least 0.05 at β = 0.5 "
    "(and 0.1 in the full form)",
)
def transformers(effort: Effort) -> Measurement:
    return _compared(effort, (None, None), 0.05)


@_bilevel(
    "bilevel-transformers-misspecified",
    statement="With a reward model that sees half of the reward's features, stop-gradient (U1) still ends nearer to the "
    "optimum than the likelihood (U0) on transformers.",
    predicts="likelihood leaves more than stop-gradient at β = 0.5 and 0.1",
    rule="verified if the lower ends of the 95 % intervals of the paired difference are not negative",
)
def transformers_misspecified(effort: Effort) -> Measurement:
    return _compared(effort, (2, 4), 0.0)
