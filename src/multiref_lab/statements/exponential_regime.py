"""The trap behind rate experiments: a fixed finite class identifies the truth exponentially fast."""

import torch

from multiref.report.figures import Curve, Plot
from multiref_lab.claim import Effort, Measurement, at_most, claim, exactly
from multiref_lab.estimators import finite_class_mle
from multiref_lab.preferences import sample_pairs
from multiref_lab.problems import random_bandits, random_class
from multiref_lab.stats import log_spaced

_CLASS_SIZE, _COMPLETIONS = 2000, 12


@claim(
    "finite-class-exponential-regime",
    group="reverse KL",
    order=3,
    statement="A fixed finite class (2,000 rewards on 12 completions) identifies the truth exponentially fast: "
    "no rate in n can be fitted there.",
    source="DERIVED, docs/theory.md 4",
    predicts="no wrong pick at n = 10⁴; slope steeper than −2 on the way there",
    rule="verified if all three hold",
)
def exponential_regime(effort: Effort) -> Measurement:
    generator = torch.Generator().manual_seed(41)
    runs = effort.choose(200, 10_000)
    problem = random_bandits(1, completions=_COMPLETIONS, generator=generator)
    candidates = random_class(problem.reward, _CLASS_SIZE, generator=generator)[0]
    reward = problem.reward.expand(runs, -1, -1)
    sizes = [*log_spaced(100, 3_000, effort.choose(4, 9)), 10_000, 100_000]
    wrong = []
    for size in sizes:
        counts = sample_pairs(reward, torch.zeros_like(reward).log_softmax(-1), size, generator=generator)
        wrong.append(float((finite_class_mle(candidates, counts) != 0).double().mean()))
    seen = [(float(n), p) for n, p in zip(sizes, wrong) if p > 0]
    before, last = torch.tensor(seen[-2:], dtype=torch.float64).log()
    slope = float((last[1] - before[1]) / (last[0] - before[0]))
    curves = (
        Curve("share of runs that pick a wrong reward", [n for n, _ in seen], [p for _, p in seen]),
        Curve("1/n through the first point", (100.0, 10_000.0), (seen[0][1], seen[0][1] / 100), "theory"),
    )
    checks = (
        exactly("share of wrong picks at n = 10⁴", 0, wrong[sizes.index(10_000)]),
        exactly("share of wrong picks at n = 10⁵", 0, wrong[-1]),
        at_most("log-log slope of the last measured stretch (a power law would keep −½ or −1)", -2.0, slope),
    )
    fits = f"{runs * len(sizes):,} fits over {_CLASS_SIZE:,} candidates"
    note = f"{fits}; slopes are therefore measured in linear or refined classes."
    return Measurement(checks, Plot("preference pairs n", "share of wrong picks", curves), note)
