"""From how many prompts on does the printed Theorem 3 say anything?"""

from __future__ import annotations

from multiref import bounds
from multiref_lab.claim import Check, Claim, Curve, Effort, Figure, Measurement, Verdict, near
from multiref_lab.slopes import log_spaced

__all__ = ["PRINTED_THEOREM_3"]


def _measure(effort: Effort) -> Measurement:
    toy = {"radius": 6.0, "feature_norm": 1.0, "sigma_max": 0.2, "sigma_min": 0.02, "sigma_min_other": 0.02}
    bound = bounds.stability_theorem_3(samples=1e4, **toy)
    threshold = bound.solve_for("samples", target=bound.trivial)
    x = tuple(float(n) for n in log_spaced(1e3, 1e10, 29))
    figure = Figure(
        "training prompts n",
        "right-hand side",
        (
            Curve("Theorem 3 (found)", x, tuple(bound.at(samples=n).value for n in x), "bound"),
            Curve("trivial range 3RC", x, (bound.trivial,) * len(x), "trivial"),
        ),
    )
    checks: tuple[Check, ...] = (
        near("value at n = 10⁴", 714, bound.value, 1),
        near("value at n = 10⁶", 96, bound.at(samples=1e6).value, 1),
        near("value at n = 10⁸", 12.7, bound.at(samples=1e8).value, 0.1),
        near("prompts from which it is below 3RC = 18", 5e7, threshold, 1e7),
    )
    return Measurement(
        checks, figure, note="C = 1, D = 2, R = 6, σ_max = 0.2, σ⁺_min = 0.02, ε_n = 0, ρ = 0.05: a benign problem."
    )


def _decide(measurement: Measurement) -> Verdict:
    return "vacuous" if all(check.holds for check in measurement.checks) else "refuted"


PRINTED_THEOREM_3 = Claim(
    name="stability-theorem-3-at-practical-n",
    group="stability",
    statement="Theorem 3's dimension-free bound certifies the empirical optimum at practical numbers of prompts.",
    status="found",
    source="arXiv 2601.16403, Theorem 3; arithmetic derived, docs/theory.md 10",
    predicted="714 at 10⁴, 96 at 10⁶, 12.7 at 10⁸, against a trivial range of 18: vacuous until about 5·10⁷",
    rule="vacuous if the four numbers are as predicted",
    measure=_measure,
    decide=_decide,
)
