"""What a run shows: the model card beside the weights, and report.html."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from multiref.runs.folder import RunFolder
from multiref.runs.settings import Run, plain

__all__ = ["card", "write_report"]

LIMITS = (
    "kl/<reference> is the average of log π − log π_k on the pairs' completions: a KL only where these are samples of the policy.",
    "Accuracies are of implicit rewards on pairs, not of generated text.",
)


def card(run: Run, facts: dict[str, Any], lines: Sequence[dict[str, Any]]) -> str:
    """The model card, as Markdown."""
    from multiref.report import ModelCard

    spec: Any = run.model
    objective, formula = _words(run)
    weights = _weights(facts, lines)
    sources = {reference.name: str(reference.model or reference.endpoint) for reference in run.references}
    return ModelCard(
        title=run.title or f"{spec.path} aligned against {len(run.references)} references",
        base_model=str(spec.path),
        objective=objective,
        formula=formula,
        references={name: (sources.get(name, "mixture of the references"), weights.get(name, "")) for name in facts["names"]},
        beta=run.beta,
        data=f"{_path(run.data)} ({facts['pairs']:,} pairs)",
        metrics=_final(lines),
        settings=plain(run),
        limits=LIMITS,
    ).markdown()


def write_report(run: Run, folder: RunFolder, facts: dict[str, Any], lines: Sequence[dict[str, Any]]) -> None:
    """report.html: what was asked, what came out, the curves, the settings and versions."""
    from multiref.report import Formula, Note, Prose, Section, Settings, Table, versions, write_page

    objective, formula = _words(run)
    final = _final(lines)
    weights = _weights(facts, lines)
    rows = [[name, f"{value:.4g}"] for name, value in final.items()]
    references = [[r.name, str(r.model or r.endpoint), weights.get(r.name, "in the mixture")] for r in run.references]
    write_page(
        folder.report,
        run.title or "A preference-training run",
        Section(
            "What was asked",
            [
                Prose(f"{objective}, β = {run.beta:g}, from {_path(run.model)} on {facts['pairs']:,} pairs."),
                Formula(formula),
                Table(("reference", "source", "weight"), references),
            ],
        ),
        Section(
            "What came out",
            [
                Table(("metric", "last value"), rows),
                Note(*LIMITS, "One run with one seed: differences between runs need several."),
            ],
        ),
        Section("Curves", _pictures(lines)),
        Section("Settings", [Settings(plain(run))]),
        Section("Versions", [Settings(versions())]),
        subtitle=f"{facts['pairs']:,} pairs, {facts['held_out']:,} held out",
    )


def _words(run: Run) -> tuple[str, str]:
    """The objective in words, and as a formula."""
    from multiref.runs.objective import regularizer_of, weights_of

    spec: Any = run.objective
    loss = {"bradley_terry": "−log σ(m)", "robust": "robust logistic(m)", "ipo": "(m − ½)²", "hinge": "max(0, 1 − m)"}[
        spec.loss
    ]
    pool = {
        "multi_dpo": ("Multi-DPO: the weighted sum of single-reference losses", f"Σ_k w_k {loss},  m = β Δ(log π − log π_k)"),
        "mrpo": ("MRPO: reverse KL to the harmonic pool", f"{loss},  m = β Δ(log π − log P),  P = (Σ_k w_k / π_k)^(−1)"),
        "renormalised_tokens": ("The token-renormalised mixture", f"{loss},  m = β Δ(log π − log π_tok)"),
    }
    if spec.kind in pool:
        words, formula = pool[spec.kind]
    else:
        regularizer = regularizer_of(run, weights_of(run))
        words = f"{regularizer.name} to several references: maximise E[r] − β {regularizer.formula}"
        reward = "log t" if regularizer.alpha == 1 else f"(t^{regularizer.alpha - 1:g} − 1)/{regularizer.alpha - 1:g}"
        formula = (
            f"{loss},  m = r(chosen) − r(rejected),  r = β f'(π/P),  f'(t) = {reward},  P = pool of order {regularizer.order:g}"
        )
    return (f"{words}, length-normalised (a variant, exact for nothing)" if spec.length_normalised else words), formula


def _path(spec: Any) -> str:
    return str(getattr(spec, "path", spec))


def _weights(facts: dict[str, Any], lines: Sequence[dict[str, Any]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in lines:
        found |= {key.removeprefix("weights/"): f"{value:.4g}" for key, value in line.items() if key.startswith("weights/")}
    return found


def _final(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The last value of each metric."""
    last: dict[str, float] = {}
    for line in lines:
        last |= {key: value for key, value in line.items() if isinstance(value, int | float) and key not in ("step", "epoch")}
    dropped = ("runtime", "per_second", "total_flos", "learning_rate", "grad_norm", "weights/", "preparation_time")
    return {key: value for key, value in last.items() if not any(part in key for part in dropped)}


def _pictures(lines: Sequence[dict[str, Any]]) -> list[Any]:
    from multiref.report import Picture
    from multiref.report.figures import Series, curves, svg

    def series(label: str, key: str) -> list[Any]:
        points = [(line["step"], line[key]) for line in lines if key in line]
        return [Series(label, [x for x, _ in points], [[y] for _, y in points])] if points else []

    wanted = [
        ("loss", "loss", series("training", "loss") + series("held out", "eval_loss")),
        (
            "implicit reward margin",
            "margin",
            series("training", "rewards/margins") + series("held out", "eval_rewards/margins"),
        ),
        ("accuracy", "accuracy", series("training", "rewards/accuracies") + series("held out", "eval_rewards/accuracies")),
        (
            "log-ratio to each reference (nats per completion)",
            "kl",
            [s for key in sorted({k for line in lines for k in line if k.startswith("kl/")}) for s in series(key, key)],
        ),
    ]
    return [
        Picture(svg(curves(shown, x="step", y=label)), alt=f"{label} over steps", caption=label)
        for label, _, shown in wanted
        if shown
    ]
