"""Claims that change with a convention: what ε means."""

from multiref import bounds
from multiref_lab.claim import Check, Effort, Measurement, claim, near


@claim(
    "bilevel-seven-halves",
    group="conventions",
    statement="Bilevel RLHF needs ε^(−7/2) samples, an improvement on the ε^(−7) of the penalty method.",
    source="FOUND, arXiv 2410.15610, abstract; theory, online-and-generalisation 3.4",
    predicts="ε^(−7), the same rate, where ε bounds ‖∇F‖²; an improvement only where ε bounds ‖∇F‖",
    rule="convention-dependent if the two readings differ as predicted",
)
def seven_halves(effort: Effort) -> Measurement:
    squared = bounds.convert_exponent(3.5, stated="squared-norm")
    norm = bounds.convert_exponent(3.5, stated="norm")
    known = bounds.convert_exponent(7, stated="norm")
    below = bounds.convert_exponent(2, stated="norm")  # iterations that any first-order method needs, smooth non-convex
    limit = "ε^(−1) iterations read as ‖∇F‖ ≤ ε against the lower bound ε^(−2)"
    checks = (
        near("read as ‖∇F‖² ≤ ε: exponent in the norm convention", 7, squared.norm, 1e-12),
        near("… minus that of the penalty method it starts from (ε^(−7))", 0, squared.norm - known.norm, 1e-12),
        near("read as ‖∇F‖ ≤ ε: exponent minus the penalty method's", -3.5, norm.norm - known.norm, 1e-12),
        Check(limit, "below it: impossible", 1.0 - below.norm, below.norm > 1),
    )
    return Measurement(checks, note=f"ε^(−7/2) reads: {squared}; which convention the proof uses could not be confirmed.")
