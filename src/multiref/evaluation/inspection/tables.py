"""An inspection as tables and lines of text, for the terminal and for the page."""

import math

from multiref.evaluation.inspection.inspection import Inspection
from multiref.evaluation.inspection.mixture import Contender
from multiref.evaluation.inspection.quality import Quality
from multiref.evaluation.inspection.score_test import POWER, SampleSize, ScoreTest
from multiref.references.token_level import TokenLevel
from multiref.report import Table


def tables(found: Inspection) -> list[Table]:
    """Every table that this inspection has."""
    result = [references_table(found), correlations_table(found)]
    result += [additions_table(found.additions)] if found.additions else []
    result += [contenders_table(found.contenders)] if found.contenders else []
    return [*result, token_level_table(found.token_level)] if found.token_level is not None else result


def token_lines(found: Inspection) -> list[str]:
    """Disagreement per token, or why it is not known."""
    t = found.token_level
    if t is None:
        return [f"KL and disagreement per token: {found.not_measured}"]
    return [
        f"Disagreement of {', '.join(t.names)} at equal weights: −log F_t = {t.disagreement:.4f} ± {t.disagreement_error:.4f} "
        "nats per token, at the contexts of these completions, not at those that a policy visits: it does not say what "
        "−log F of whole completions is."
    ]


def references_table(found: Inspection) -> Table:
    """Each reference by itself."""
    header = ["reference", "accuracy (95 %)", "−log σ(m)", "tempered", "temperature", "calibration error"]
    header += ["corr. with length", "prefer-shorter", "nats/token", "spread", "truncated", "state"]
    left = f"; {found.left_out:,} left out (a score of −∞)" if found.left_out else ""
    caption = f"Each reference by itself ({found.pairs:,} pairs, {found.prompts:,} prompts{left})"
    return Table(header, [_reference(quality) for quality in found.references], caption)


def _reference(q: Quality) -> list[str]:
    low, high = q.accuracy_interval
    itself = [q.name, f"{q.accuracy:.3f} [{low:.3f}, {high:.3f}]", f"{q.log_loss:.3f}", f"{q.tempered_log_loss:.4f}"]
    calibrated = [f"{q.temperature:.3g}", f"{q.calibration_error:.3f}"]
    by_length = [f"{q.length_correlation:+.2f}", f"{q.shorter_accuracy:.3f}"]
    text = [f"{q.nats_per_token:.2f}", f"{q.spread:.2f}", f"{q.truncated:.1%}", "BROKEN?" if q.faults else "sound"]
    return [*itself, *calibrated, *by_length, *text]


def correlations_table(found: Inspection) -> Table:
    """Which references say the same."""
    names = [quality.name for quality in found.references]
    rows = [[name, *(f"{value:+.2f}" for value in row)] for name, row in zip(names, found.correlations, strict=True)]
    return Table(["", *names], rows, "Correlation of margins between references")


def additions_table(additions: tuple[ScoreTest, ...]) -> Table:
    """What each sound reference adds to the chosen ones, by the score test."""
    header = ["reference", "beside", "z", "p", "z without what tokens explain"]
    rows = [
        [test.name, ", ".join(test.given) or "nothing", f"{test.z:+.2f}", f"{test.p:.2g}", f"{test.z_without_length:+.2f}"]
        for test in additions
    ]
    return Table(header, rows, "What each reference adds to those that are used (score test, one-sided, prompts are the units)")


def plan_table(sizes: list[SampleSize], gain: float | None) -> Table:
    """How many pairs would show it."""
    told = ["adds nothing that way" if math.isinf(size.pairs) else f"{size.pairs:,.0f}" for size in sizes]
    rows = [[size.name, ", ".join(size.given) or "nothing", pairs] for size, pairs in zip(sizes, told)]
    effect = "the effect found here (an estimate, so this is one too)" if gain is None else f"a gain of {gain:g} nats a pair"
    return Table(["reference", "beside", "pairs"], rows, f"Pairs that would show {effect}, at {POWER:.0%} power")


def contenders_table(contenders: tuple[Contender, ...]) -> Table:
    """Ways to weigh references, the best first."""
    header = ["weights", "held-out log-likelihood per pair", "accuracy", "against the best single"]
    rows = [
        [c.name, f"{c.log_likelihood:.4f} ± {c.error:.4f}", f"{c.accuracy:.3f}", f"{c.gain:+.4f} ± {c.gain_error:.4f}"]
        for c in sorted(contenders, key=lambda c: -c.log_likelihood)
    ]
    coin = f"(a fair coin: {-math.log(2):.4f})"
    return Table(header, rows, f"Mixtures, each with its scale fitted on other prompts; ± one standard error {coin}")


def token_level_table(t: TokenLevel) -> Table:
    """KL of each reference to each other one."""
    rows = [
        [f"KL({name} ‖ ·)", *("" if i == j else f"{t.kl[i][j]:.4f} ± {t.kl_error[i][j]:.4f}" for j in range(len(t.names)))]
        for i, name in enumerate(t.names)
    ]
    spent = f"{t.tokens:,} tokens of {t.completions:,} completions"
    return Table(["", *t.names], rows, f"KL in nats per token, {spent}; ± one standard error")
