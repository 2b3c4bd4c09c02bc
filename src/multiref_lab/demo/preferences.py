"""Preference pairs of the world: whose answers are compared, and who says which is better."""

from dataclasses import dataclass

import torch

from multiref.data import Pair
from multiref.errors import ArgumentError
from multiref_lab.demo.world import World


@dataclass(frozen=True)
class PairLaw:
    """How pairs are drawn and labelled.

    A pair holds two different answers, from the references' mean (the second without the first). The first is preferred with
    probability σ(scale · (points(first) − points(second))).
    """

    prompts: int = 2400
    pairs_per_prompt: int = 10
    scale: float = 2.0

    def __post_init__(self) -> None:
        if self.prompts < 1 or self.pairs_per_prompt < 1 or not self.scale > 0:
            raise ArgumentError(f"expected prompts, pairs_per_prompt ≥ 1, scale > 0; found {self}")


def draw_pairs(world: World, law: PairLaw, seed: int) -> list[Pair]:
    """prompts × pairs_per_prompt pairs; the seed decides prompts, answers and labels."""
    problems = world.problems(law.prompts, seed)
    chance = torch.Generator().manual_seed(seed)
    mixture = world.ref_logps(problems).exp().mean(0)
    rewards = law.scale * world.rewards(problems)
    pairs: list[Pair] = []
    for _ in range(law.pairs_per_prompt):
        sides = torch.multinomial(mixture, 2, replacement=False, generator=chance)
        margin = rewards.gather(1, sides).diff(dim=1)  # second minus first
        keep = torch.rand(len(problems), generator=chance, dtype=torch.float64)[:, None] >= margin.sigmoid()
        for problem, (chosen, rejected) in zip(problems, torch.where(keep, sides, sides.flip(1)).tolist(), strict=True):
            sides_of = world.answers[chosen], world.answers[rejected]
            pairs.append(Pair(problem.prompt, *sides_of, f"demo pair {len(pairs) + 1}"))
    return pairs
