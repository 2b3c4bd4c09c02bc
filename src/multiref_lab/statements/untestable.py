"""Printed results that numbers on a table cannot decide: said so, instead of left out."""

from __future__ import annotations

from multiref_lab.claim import Claim, Effort, Measurement, Verdict

__all__ = ["FIGURE_1", "TABLE_7B"]


def _nothing(note: str):
    def measure(effort: Effort) -> Measurement:
        return Measurement((), note=note)

    return measure


def _decide(measurement: Measurement) -> Verdict:
    return "not testable here"


TABLE_7B = Claim(
    name="table-7b-win-rates",
    group="not testable here",
    statement="Qwen2.5-7B on UltraFeedback: DPO with two references wins 66.1 %, with either alone 56.4 % and 59.8 %.",
    status="found",
    source="arXiv 2502.01203, Table 1 (second-hand)",
    predicted="—",
    rule="not testable here",
    measure=_nothing("Judge, opponent, weights, β and seeds are not available, and the run needs accelerators."),
    decide=_decide,
)
FIGURE_1 = Claim(
    name="figure-1-exact-beats-mrpo-and-single",
    group="not testable here",
    statement="On GSM8K and UltraFeedback with 0.5B policies the exact objective beats MRPO's approximation and the single reference.",
    status="found",
    source="arXiv 2502.01203, Figure 1",
    predicted="—",
    rule="not testable here",
    measure=_nothing(
        "The released code optimises the tokenwise-renormalised reference under k3, and has no MRPO baseline; what these rules reach on a "
        "language model that can be enumerated is the claim online-fixed-points."
    ),
    decide=_decide,
)
