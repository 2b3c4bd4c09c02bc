"""Preference pairs of the world: whose answers are compared, and who says which is better."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from multiref.data import Pair
from multiref.errors import ArgumentError
from multiref_lab.demo.corpus import Problem
from multiref_lab.demo.world import World


@dataclass(frozen=True)
class PairLaw:
    """How pairs are drawn and labelled.

    Each answer comes from μ = (1 − explore) · mean of the references + explore · uniform over all V² answers;
    a pair holds two different answers (the second is drawn from μ without the first).
    The first is preferred with probability σ(scale · (points(first) − points(second))).

    The references of the demo give every answer now and then, so `explore` may be zero;
    where they do not, nothing is ever said about the answers that none gives, and a policy drifts there unpunished.
    """

    prompts: int = 2400
    pairs_per_prompt: int = 10
    explore: float = 0.0
    scale: float = 2.0

    def __post_init__(self) -> None:
        if self.prompts < 1 or self.pairs_per_prompt < 1 or not 0 <= self.explore <= 1 or not self.scale > 0:
            raise ArgumentError(f"expected prompts, pairs_per_prompt ≥ 1, explore in [0, 1], scale > 0; found {self}")


def draw_pairs(world: World, law: PairLaw, seed: int) -> list[Pair]:
    """prompts × pairs_per_prompt pairs; the seed decides prompts, answers and labels."""
    problems = world.problems(law.prompts, seed)
    chance = torch.Generator().manual_seed(seed)
    mixture = (1 - law.explore) * world.ref_logps(problems).exp().mean(0) + law.explore / len(world.answers)
    rewards = law.scale * world.rewards(problems)
    first, second, preferred = [], [], []
    for _ in range(law.pairs_per_prompt):
        sides = torch.multinomial(mixture, 2, replacement=False, generator=chance)
        margin = rewards.gather(1, sides).diff(dim=1)[:, 0]  # second minus first
        keep = torch.rand(len(problems), generator=chance, dtype=torch.float64) >= margin.sigmoid()
        first += sides[:, 0].tolist()
        second += sides[:, 1].tolist()
        preferred += keep.tolist()
    return _as_pairs(world, list(problems) * law.pairs_per_prompt, first, second, preferred)


def _as_pairs(
    world: World, problems: Sequence[Problem], first: Sequence[int], second: Sequence[int], preferred: Sequence[bool]
) -> list[Pair]:
    answers, pairs = world.answers, []
    for number, (problem, a, b, first_wins) in enumerate(zip(problems, first, second, preferred, strict=True), 1):
        chosen, rejected = (a, b) if first_wins else (b, a)
        pairs.append(Pair(problem.prompt, answers[chosen], answers[rejected], f"demo pair {number}"))
    return pairs
