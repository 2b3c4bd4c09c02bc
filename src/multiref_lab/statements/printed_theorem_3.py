"""From how many prompts on does the printed Theorem 3 say anything?"""

from multiref import bounds
from multiref.report.figures import Plot
from multiref_lab.claim import Effort, Measurement, claim, near
from multiref_lab.curves import along, flat
from multiref_lab.stats import log_spaced


@claim(
    "stability-theorem-3-at-practical-n",
    group="stability",
    order=4,
    statement="Theorem 3's dimension-free bound certifies the empirical optimum at practical numbers of prompts.",
    source="FOUND, arXiv 2601.16403, Theorem 3; arithmetic derived, docs/theory.md 10",
    predicts="714 at 10⁴, 96 at 10⁶, 12.7 at 10⁸, against a trivial range of 18: vacuous until about 5·10⁷",
    rule="vacuous if the four numbers are as predicted",
)
def printed_theorem_3(effort: Effort) -> Measurement:
    toy = {"radius": 6.0, "feature_norm": 1.0, "sigma_max": 0.2, "sigma_min": 0.02, "sigma_min_other": 0.02}
    bound = bounds.stability_theorem_3(samples=1e4, **toy)
    x = log_spaced(1e3, 1e10, 29)
    lines = (along("Theorem 3 (found)", bound, x), flat("trivial range 3RC", x, bound.trivial))
    checks = (
        near("value at n = 10⁴", 714, bound.value, 1),
        near("value at n = 10⁶", 96, bound.at(samples=1e6).value, 1),
        near("value at n = 10⁸", 12.7, bound.at(samples=1e8).value, 0.1),
        near("prompts from which it is below 3RC = 18", 5e7, bound.solve_for("samples", target=bound.trivial), 1e7),
    )
    note = "C = 1, D = 2, R = 6, σ_max = 0.2, σ⁺_min = 0.02, ε_n = 0, ρ = 0.05: a benign problem."
    return Measurement(checks, Plot("training prompts n", "right-hand side", lines), note)
