"""Printed results that numbers on a table cannot decide: said so, instead of left out."""

from functools import partial

from multiref_lab.claim import Effort, Measurement, claim

_untestable = partial(claim, group="not testable here", predicts="—", rule="not testable here")


@_untestable(
    "table-7b-win-rates",
    statement="Qwen2.5-7B on UltraFeedback: DPO with two references wins 66.1 %, with either alone 56.4 % and 59.8 %.",
    source="FOUND, arXiv 2502.01203, Table 1 (second-hand)",
)
def table_7b(effort: Effort) -> Measurement:
    return Measurement((), note="Judge, opponent, weights, β and seeds are not available, and the run needs accelerators.")


@_untestable(
    "figure-1-exact-beats-mrpo-and-single",
    statement="On GSM8K and UltraFeedback with 0.5B policies the exact objective beats MRPO's approximation and the single "
    "reference.",
    source="FOUND, arXiv 2502.01203, Figure 1",
)
def figure_1(effort: Effort) -> Measurement:
    note = (
        "The released code optimises the tokenwise-renormalised reference under k3, and has no MRPO baseline; what these rules "
        "reach on a language model that can be enumerated is the claim online-fixed-points."
    )
    return Measurement((), note=note)
