"""Missing mass: where −1/2 comes from when prompts have a heavy tail."""

import torch
from torch import Tensor

from multiref.report.figures import Plot
from multiref_lab.claim import Effort, Measurement, claim, near
from multiref_lab.stats import fitted, log_spaced


def zipf_draws(exponent: float, rows: int, columns: int, *, generator: torch.Generator) -> Tensor:
    """[rows, columns] of draws with P(j) = j^{−a}/ζ(a), j = 1, 2, …, by Devroye's rejection: the tail is not cut off."""
    b = 2 ** (exponent - 1)
    drawn = torch.zeros(rows * columns, dtype=torch.float64)
    todo = torch.arange(rows * columns)
    while len(todo):
        u = 1 - torch.rand(len(todo), generator=generator, dtype=torch.float64)
        v = torch.rand(len(todo), generator=generator, dtype=torch.float64)
        x = (u ** (-1 / (exponent - 1))).floor()
        t = (1 + 1 / x) ** (exponent - 1)
        accepted = v * x * (t - 1) / (b - 1) <= t / b
        drawn[todo[accepted]] = x[accepted]
        todo = todo[~accepted]
    return drawn.reshape(rows, columns)


def missing_mass(draws: Tensor, exponent: float) -> Tensor:
    """[S, n] → [S]: probability of the patterns that are not among the draws."""
    ordered = draws.sort(-1).values
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    total = torch.special.zeta(torch.tensor(exponent, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
    missing: Tensor = 1 - torch.where(new, ordered**-exponent, 0.0).sum(-1) / total
    return missing


@claim(
    "zipf-missing-mass",
    group="stability",
    order=2,
    statement="With Zipf(a)-distributed feature patterns sub-optimality falls like n^{−(1−1/a)}: "
    "the reported −½ is the prompt distribution's, a ≈ 2.",
    source="DERIVED, theory, online-and-generalisation 5.5",
    predicts="slopes −0.20, −0.33, −0.50, −0.67 at a = 1.25, 1.5, 2, 3",
    rule="verified if every slope is within 0.05",
)
def zipf_missing_mass(effort: Effort) -> Measurement:
    """Every pattern has its own features and the same reward; an unseen one keeps π_ref and loses the same KL,
    so regret = KL × missing mass.
    """
    generator = torch.Generator().manual_seed(111)
    reward = torch.tensor([2.0, 0, 0, 0, 0], dtype=torch.float64)
    price = float(-reward.mean() + torch.logsumexp(reward, 0) - torch.log(torch.tensor(5.0)))
    longest = effort.choose(20_000, 200_000)
    sizes = log_spaced(longest / 100, longest, effort.choose(7, 9))
    curves, checks = [], []
    for exponent in (1.25, 1.5, 2.0, 3.0):
        draws = zipf_draws(exponent, effort.choose(20, 40), longest, generator=generator)
        regret = price * torch.stack([missing_mass(draws[:, :n], exponent) for n in sizes], -1)
        slope, curve = fitted(f"a = {exponent:g}", sizes, regret)
        curves.append(curve)
        checks.append(near(f"slope, a = {exponent:g}", -(1 - 1 / exponent), slope, 0.05))
    return Measurement(checks, Plot("training prompts n", "sub-optimality", curves))
