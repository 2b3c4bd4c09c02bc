"""Results as they are printed: what changes with the meaning of ε, from how many prompts on Theorem 3 says anything,
and what numbers on a table cannot decide: said so, instead of left out.
"""

from multiref import bounds
from multiref.report.figures import Plot
from multiref_lab.claim import Check, Claim, Effort, Findings, claim, near
from multiref_lab.stats import along, flat, log_spaced


@claim(
    "bilevel-seven-halves",
    group="conventions",
    statement="Bilevel RLHF needs ε^(−7/2) samples, an improvement on the ε^(−7) of the penalty method.",
    source="FOUND, arXiv 2410.15610, abstract; theory, online-and-generalisation 3.4",
    predicts="ε^(−7), the same rate, where ε bounds ‖∇F‖²; an improvement only where ε bounds ‖∇F‖",
    rule="convention-dependent if the two readings differ as predicted",
)
def seven_halves(effort: Effort) -> Findings:
    squared = bounds.convert_exponent(3.5, stated="squared-norm")
    norm = bounds.convert_exponent(3.5, stated="norm")
    known = bounds.convert_exponent(7, stated="norm")
    below = bounds.convert_exponent(2, stated="norm")  # iterations that any first-order method needs, smooth non-convex
    limit = "ε^(−1) iterations read as ‖∇F‖ ≤ ε against the lower bound ε^(−2)"
    yield near("read as ‖∇F‖² ≤ ε: exponent in the norm convention", 7, squared.norm, 1e-12)
    yield near("… minus that of the penalty method it starts from (ε^(−7))", 0, squared.norm - known.norm, 1e-12)
    yield near("read as ‖∇F‖ ≤ ε: exponent minus the penalty method's", -3.5, norm.norm - known.norm, 1e-12)
    yield Check(limit, "below it: impossible", 1.0 - below.norm, below.norm > 1)
    yield f"ε^(−7/2) reads: {squared}; which convention the proof uses could not be confirmed."


@claim(
    "stability-theorem-3-at-practical-n",
    group="stability",
    order=4,
    statement="Theorem 3's dimension-free bound certifies the empirical optimum at practical numbers of prompts.",
    source="FOUND, arXiv 2601.16403, Theorem 3; arithmetic derived, docs/theory.md 10",
    predicts="714 at 10⁴, 96 at 10⁶, 12.7 at 10⁸, against a trivial range of 18: vacuous until about 5·10⁷",
    rule="vacuous if the four numbers are as predicted",
)
def printed_theorem_3(effort: Effort) -> Findings:
    toy = {"radius": 6.0, "feature_norm": 1.0, "sigma_max": 0.2, "sigma_min": 0.02, "sigma_min_other": 0.02}
    bound = bounds.stability_theorem_3(samples=1e4, **toy)
    x = log_spaced(1e3, 1e10, 29)
    lines = (along("Theorem 3 (found)", bound, x), flat("trivial range 3RC", x, bound.trivial))
    yield near("value at n = 10⁴", 714, bound.value, 1)
    yield near("value at n = 10⁶", 96, bound.at(samples=1e6).value, 1)
    yield near("value at n = 10⁸", 12.7, bound.at(samples=1e8).value, 0.1)
    yield near("prompts from which it is below 3RC = 18", 5e7, bound.solve_for("samples", target=bound.trivial), 1e7)
    yield Plot("training prompts n", "right-hand side", lines)
    yield "C = 1, D = 2, R = 6, σ_max = 0.2, σ⁺_min = 0.02, ε_n = 0, ρ = 0.05: a benign problem."


def _untestable(name: str, *, statement: str, source: str, note: str) -> Claim:
    """What needs models and judges that are not here."""
    made = claim(name, group="not testable here", statement=statement, source=source, predicts="—", rule="not testable here")
    return made(lambda effort: [note])


table_7b = _untestable(
    "table-7b-win-rates",
    statement="Qwen2.5-7B on UltraFeedback: DPO with two references wins 66.1 %, with either alone 56.4 % and 59.8 %.",
    source="FOUND, arXiv 2502.01203, Table 1 (second-hand)",
    note="Judge, opponent, weights, β and seeds are not available, and the run needs accelerators.",
)
figure_1 = _untestable(
    "figure-1-exact-beats-mrpo-and-single",
    statement="On GSM8K and UltraFeedback with 0.5B policies the exact objective beats MRPO's approximation and the single "
    "reference.",
    source="FOUND, arXiv 2502.01203, Figure 1",
    note="The released code optimises the tokenwise-renormalised reference under k3, and has no MRPO baseline; what these "
    "rules reach on a language model that can be enumerated is the claim online-fixed-points.",
)
