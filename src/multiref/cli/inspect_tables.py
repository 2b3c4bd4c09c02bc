"""An inspection as rows of text: for the terminal, and for the page."""

import math
from typing import Any

__all__ = ["coverage_lines", "show", "tables"]

Rows = tuple[str, list[str], list[list[str]]]


def tables(found: Any) -> list[Rows]:
    """(title, header, rows) of each table."""
    result = [_references(found), _correlations(found)]
    if found.contenders:
        result.append(_contenders(found))
    if found.token_level is not None:
        result.append(_token_level(found))
    return result


def show(found: Any) -> None:
    """Print the tables and the verdict."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for title, header, rows in tables(found):
        table = Table(*header, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for line in coverage_lines(found):
        console.print(line, markup=False, highlight=False)
    console.print("\nVerdict", style="bold")
    for sentence in found.verdict.sentences:
        console.print(sentence, markup=False, highlight=False)


def coverage_lines(found: Any) -> list[str]:
    """What disagreement per token means, or why it is not known."""
    if found.coverage is None:
        return [f"KL and disagreement per token: {found.not_measured}"]
    c = found.coverage
    reach = "never" if math.isinf(c.empty_at) else f"at about {c.empty_at:,.0f} tokens"
    return [
        f"Disagreement of {', '.join(found.token_level.names)} at equal weights: −log F = {c.disagreement:.4f} ± {c.error:.4f} nats per token.",
        f"At {c.length:.0f} tokens, the mean completion here, coverage constants grow by 1/F ≈ {c.inverse_mass:,.3g}; the geometric pool is "
        f"effectively empty (F < 1/1000) {reach}. Measured at the contexts of these completions, not at those that a policy visits.",
    ]


def _references(found: Any) -> Rows:
    header = ["reference", "accuracy (95 %)", "−log σ(m)", "tempered", "temperature", "calibration error"]
    header += ["corr. with length", "prefer-shorter", "nats/token", "spread", "truncated", "state"]
    rows = []
    for q in found.references:
        low, high = q.accuracy_interval
        itself = [q.name, f"{q.accuracy:.3f} [{low:.3f}, {high:.3f}]", f"{q.log_loss:.3f}", f"{q.tempered_log_loss:.4f}"]
        calibrated = [
            f"{q.temperature:.3g}",
            f"{q.calibration_error:.3f}",
            f"{q.length_correlation:+.2f}",
            f"{q.shorter_accuracy:.3f}",
        ]
        text = [f"{q.nats_per_token:.2f}", f"{q.spread:.2f}", f"{q.truncated:.1%}", "BROKEN?" if q.faults else "sound"]
        rows.append([*itself, *calibrated, *text])
    left = f"; {found.left_out:,} left out (a score of −∞)" if found.left_out else ""
    return f"Each reference by itself ({found.pairs:,} pairs, {found.prompts:,} prompts{left})", header, rows


def _correlations(found: Any) -> Rows:
    names = [q.name for q in found.references]
    rows = [[name, *(f"{value:+.2f}" for value in row)] for name, row in zip(names, found.correlations, strict=True)]
    return "Correlation of margins between references", ["", *names], rows


def _contenders(found: Any) -> Rows:
    header = ["weights", "held-out log-likelihood per pair", "accuracy", "against the best single"]
    rows = [
        [c.name, f"{c.log_likelihood:.4f} ± {c.error:.4f}", f"{c.accuracy:.3f}", f"{c.gain:+.4f} ± {c.gain_error:.4f}"]
        for c in sorted(found.contenders, key=lambda c: -c.log_likelihood)
    ]
    return (
        f"Mixtures, each with its scale fitted on other prompts; ± one standard error (a fair coin: {-math.log(2):.4f})",
        header,
        rows,
    )


def _token_level(found: Any) -> Rows:
    t = found.token_level
    rows = [
        [f"KL({name} ‖ ·)", *("" if i == j else f"{t.kl[i][j]:.4f} ± {t.kl_error[i][j]:.4f}" for j in range(len(t.names)))]
        for i, name in enumerate(t.names)
    ]
    return (
        f"KL in nats per token, {t.tokens:,} tokens of {t.completions:,} completions; ± one standard error",
        ["", *t.names],
        rows,
    )
