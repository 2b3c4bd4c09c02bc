"""The sweep's figures: curves over α with standard errors, dashed where a rule would end if training were perfect, and the plane of reward and KL."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from multiref.report.figures.canvas import GREY, MARKERS, PALETTE, canvas
from multiref.report.noise import Measure
from multiref_lab.frontier.findings import Findings, Plane
from multiref_lab.frontier.rules import LABELS, label

__all__ = ["gap", "objective", "plane_of_reward", "reward"]

INK = "#1b1f24"
STYLES = {"exact": 0, "mrpo": 1, "multi-dpo": 2, "authors": 3}  # colour and marker of a rule, the same in every figure
BETAS = [2.0 ** (step / 3) for step in range(-9, 16)]  # times β: the curve of exact optima


def objective(findings: Findings, plane: Plane) -> Figure:
    """J_α against α: every rule at its own α, the single references (straight lines: J is linear in α), the best value J*_α."""
    figure, axes = canvas(6.4, 4.8)
    alphas = findings.alphas
    _rules(axes, findings, plane, "J")
    for end, style in ((1.0, ":"), (0.0, "-.")):
        values = [findings.measure(plane, "exact", end, "J", at=alpha).mean for alpha in alphas]
        axes.plot(
            alphas, values, color=GREY, linestyle=style, linewidth=1.2, label=label("single", end, findings.names(plane.task))
        )
    if findings.exact_place(plane, 0.5) is not None:
        grid = [step / 20 for step in range(21)]
        best = [place.J for alpha in grid if (place := findings.exact_place(plane, alpha)) is not None]
        axes.plot(grid, best, color=INK, linewidth=1.2, label="best value J*_α (exact)")
    return _finished(figure, axes, findings, plane, "J_α(π), the objective as asked  (higher is better)")


def gap(findings: Findings, plane: Plane) -> Figure:
    """J*_α − J_α on a logarithmic axis; dashed: the rule's own optimum."""
    figure, axes = canvas(6.4, 4.8)
    _rules(axes, findings, plane, "gap")
    inside = [step / 20 for step in range(1, 20)]
    for rule in findings.settings.chosen:
        ends = [place.gap * plane.beta for alpha in inside if (place := findings.end(plane, rule, alpha)) is not None]
        if ends and max(ends) > 1e-6:
            colour = PALETTE[STYLES[rule]]
            axes.plot(
                inside, ends, color=colour, linestyle=(0, (4, 3)), linewidth=1, label=f"{LABELS[rule]}, if trained perfectly"
            )
    axes.set_yscale("log")
    return _finished(figure, axes, findings, plane, "J*_α − J_α(π) = β KL(π‖π*_α)  (log)")


def reward(findings: Findings, plane: Plane) -> Figure:
    """E_π[r] against α."""
    figure, axes = canvas(6.4, 4.6)
    _rules(axes, findings, plane, "reward")
    inside = [step / 20 for step in range(21)]
    for rule in findings.settings.chosen:
        ends = [place.reward for alpha in inside if (place := findings.end(plane, rule, alpha)) is not None]
        if ends:
            axes.plot(inside, ends, color=PALETTE[STYLES[rule]], linestyle=(0, (4, 3)), linewidth=1)
    return _finished(figure, axes, findings, plane, "E_π[r]  (dashed: if trained perfectly)")


def plane_of_reward(findings: Findings, plane: Plane) -> Figure:
    """Reward against the mean KL to both references: a line joins a rule's weights, larger marks a larger α; β is varied where it was swept."""
    figure, axes = canvas(6.4, 5.2)
    planes = [p for p in findings.planes if (p.task, p.pairs) == (plane.task, plane.pairs)]
    if findings.exact_place(plane, 0.5) is not None:
        curve = [findings.exact_place(plane, 0.5, beta=plane.beta * factor) for factor in BETAS]
        points = sorted((sum(place.kl) / 2, place.reward) for place in curve if place is not None)
        axes.plot(
            [x for x, _ in points], [y for _, y in points], color=INK, linewidth=1.2, label="exact optima at α = ½, every β"
        )
    for rule in findings.settings.chosen:
        for number, each in enumerate(planes):
            _path(axes, findings, each, rule, LABELS[rule] if not number else None)
    for end, marker in ((1.0, "X"), (0.0, "p")):
        for number, each in enumerate(planes):
            x, y = (findings.measure(each, "exact", end, what, at=0.5) for what in ("price", "reward"))
            name = label("single", end, findings.names(plane.task)) if not number else None
            axes.errorbar(
                x.mean,
                y.mean,
                x.error,
                y.error,
                color=GREY,
                marker=marker,
                markersize=8,
                linestyle="none",
                capsize=2.5,
                label=name,
            )
    axes.set_xlabel("½ Σₖ KL(π‖πₖ), nats per completion  (lower is nearer to both)")
    axes.set_ylabel("expected reward E_π[r]")
    swept = f"β = {', '.join(f'{p.beta:g}' for p in planes)}"
    axes.set_title(swept, fontsize=10, color=GREY)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _path(axes: Axes, findings: Findings, plane: Plane, rule: str, name: str | None) -> None:
    colour, marker = PALETTE[STYLES[rule]], MARKERS[STYLES[rule]]
    both = [[findings.measure(plane, rule, alpha, what, at=0.5) for alpha in findings.alphas] for what in ("price", "reward")]
    axes.plot([m.mean for m in both[0]], [m.mean for m in both[1]], color=colour, linewidth=0.9, alpha=0.7)
    for alpha, x, y in zip(findings.alphas, *both, strict=True):
        if 0 < alpha < 1:
            axes.errorbar(
                x.mean, y.mean, x.error, y.error, color=colour, marker=marker, markersize=4 + 4 * alpha, linestyle="none", capsize=2,
                label=name,
            )  # fmt: skip
            name = None


def _rules(axes: Axes, findings: Findings, plane: Plane, number: str) -> None:
    """A line with error bars for each rule; the rules are set a little apart, so that bars can be told from each other."""
    measure = _gap(findings, plane) if number == "gap" else lambda rule, alpha: findings.measure(plane, rule, alpha, number)
    for place, rule in enumerate(findings.settings.chosen):
        found = [measure(rule, alpha) for alpha in findings.alphas]
        apart = [alpha + (place - 1) * 0.006 if 0 < alpha < 1 else alpha for alpha in findings.alphas]
        colour, marker = PALETTE[STYLES[rule]], MARKERS[STYLES[rule]]
        axes.errorbar(
            apart, [m.mean for m in found], [m.error or 0.0 for m in found], color=colour, marker=marker, markersize=5.5, linewidth=1.5,
            capsize=2.5, label=LABELS[rule],
        )  # fmt: skip


def _gap(findings: Findings, plane: Plane) -> Callable[[str, float], Measure]:
    def of(rule: str, alpha: float) -> Measure:
        best = findings.exact_place(plane, alpha)
        assert best is not None
        return Measure.of([best.J - value for value in findings.values(plane, rule, alpha, "J")])

    return of


def _finished(figure: Figure, axes: Axes, findings: Findings, plane: Plane, axis: str) -> Figure:
    one, two = findings.names(plane.task)
    axes.set_xlabel(f"α, the weight of {one}  (0: {two} alone, 1: {one} alone)")
    axes.set_ylabel(axis)
    axes.set_title(f"{plane.task}, {findings.settings.training}, β = {plane.beta:g}", fontsize=10, color=GREY)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure
