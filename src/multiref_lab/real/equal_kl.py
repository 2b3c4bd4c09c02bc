"""Rules compared where they are equally far from the base: interpolated along their β, errors by a bootstrap of questions."""

from dataclasses import dataclass

import torch
from torch import Tensor

from multiref_lab.real.run import Findings
from multiref_lab.real.settings import BASE, EXACT, REFERENCES
from multiref_lab.stats import RESAMPLES, Measure, resample


@dataclass(frozen=True)
class Level:
    """A rule at one KL(π‖base): share of right answers, its gain over the base, Σ_k w_k KL(π‖π_k) at the even weights of the
    exact rule, and the exact rule's share less this one's. `seeds`: one entry, or all of which it is the mean."""

    rule: str
    seeds: tuple[int, ...]
    right: Measure
    gain: Measure
    divergence: Measure
    behind: Measure | None


def compare(findings: Findings) -> tuple[float, list[Level]]:
    """(the KL(π‖base), every rule and seed there, then each rule's mean of the seeds).

    The KL is the largest that every rule reaches on every seed. Between the base and the βs, all is linear in KL(π‖base).
    One resample draws questions once for all rules and seeds (those whose KL is measured and the others apart), so that what
    policies share cancels in differences; the error is the deviation over resamples. It is of the questions alone: another
    training seed is another line of the table.
    """
    s = findings.settings
    places, priced = s.places(s.compared), s.places(s.few)
    has_price = torch.tensor([place in priced for place in places])
    counts = torch.cat([torch.ones(1, len(places)).double(), _resample(has_price)])
    lines = {key: _line(findings, *key, counts, has_price) for key in dict.fromkeys((t.rule, t.seed) for t in findings.trained)}
    price = min(float(line[0, :, 0].max()) for line in lines.values())
    found: dict[tuple[str, int | None], Tensor] = {key: _at(price, line) for key, line in lines.items()}
    rules = list(dict.fromkeys(rule for rule, _ in found))
    for rule in rules:
        found |= {(rule, None): torch.stack([each for (name, seed), each in found.items() if name == rule]).mean(0)}
    base = counts @ findings.given[BASE].sampled[list(s.places(s.compared))] / counts.sum(1)
    return price, [
        Level(
            rule,
            s.seeds if seed is None else (seed,),
            _measure(each[:, 1]),
            _measure(each[:, 1] - base),
            _measure(each[:, 2]),
            _measure(found[EXACT, seed][:, 1] - each[:, 1]) if rule != EXACT and EXACT in rules else None,
        )
        for (rule, seed), each in found.items()
    ]


def _resample(has_price: Tensor) -> Tensor:
    """[RESAMPLES, Q]: how often each question is drawn, as many of either kind as there are."""
    counts, generator = torch.zeros(RESAMPLES, len(has_price), dtype=torch.float64), torch.Generator().manual_seed(0)
    for kind in (has_price, ~has_price):
        if bool(kind.any()):
            counts[:, kind] = resample(int(kind.sum()), generator)
    return counts


def _line(findings: Findings, rule: str, seed: int, counts: Tensor, has_price: Tensor) -> Tensor:
    """[1 + RESAMPLES, points, 3]: KL(π‖base), right, Σ_k w_k KL of the base and of the rule at each β; by KL, rising."""
    asked = list(findings.settings.places(findings.settings.compared))
    trials = [each for trial, each in findings.trained.items() if (trial.rule, trial.seed) == (rule, seed)]
    points, few = [], counts[:, has_price]
    for each in [findings.given[BASE], *trials]:
        own = {int(place): row for row, place in enumerate(each.places)}
        right = counts @ each.sampled[[own[place] for place in asked]] / counts.sum(1)
        kls = torch.stack([few @ each.kls[name] / few.sum(1) for name in REFERENCES])
        points.append(torch.stack([kls[REFERENCES.index(BASE)], right, kls.mean(0)], -1))
    line = torch.stack(points, 1)
    return line.gather(1, line[..., :1].argsort(1).expand_as(line))


def _at(price: float, line: Tensor) -> Tensor:
    """[B, 3]: on the piece of the line that spans the price; beyond the last point, on the ray from the base through it. Its
    last piece would not do: two βs that end at one KL leave it no direction."""
    below, last = (line[..., 0] < price).sum(1), line.shape[1] - 1
    rows, upper = torch.arange(len(line)), below.clamp(1, last)
    low, high = line[rows, torch.where(below > last, 0, upper - 1)], line[rows, upper]
    share = (price - low[:, :1]) / (high[:, :1] - low[:, :1]).clamp_min(1e-9)
    return low + share * (high - low)


def _measure(values: Tensor) -> Measure:
    """The first value, with the deviation of the others as its error."""
    return Measure(float(values[0]), float(values[1:].std()), len(values) - 1)


def judge(findings: Findings, rule: str = EXACT) -> list[tuple[float, Measure, list[float]]]:
    """(β, gain over the base in the mean of the seeds, each seed's gain) of the rule. The error is over questions, each
    seed's gain on a question averaged first."""
    found = []
    for beta in findings.settings.betas:
        trained = [each for trial, each in findings.trained.items() if (trial.rule, trial.beta) == (rule, beta)]
        if trained:
            gains = torch.stack([each.sampled - findings.given[BASE].sampled[each.places] for each in trained])
            found.append((beta, Measure.of(gains.mean(0).tolist()), gains.mean(1).tolist()))
    return found
