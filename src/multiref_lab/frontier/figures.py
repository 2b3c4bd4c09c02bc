"""The sweep's figures: curves over the weight α with standard errors, dashed where a rule would end if training were perfect,
and the plane of reward
and KL."""

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from multiref.report.figures import GREY, MARKERS, PALETTE, canvas
from multiref_lab.frontier.findings import Findings, Place, Plane, Trained
from multiref_lab.frontier.rules import LABELS, label
from multiref_lab.stats import Measure

INK = "#1b1f24"
DASHED = (0, (4, 3))
STYLES = {"exact": 0, "mrpo": 1, "multi-dpo": 2, "authors": 3}  # colour and marker of a rule, the same in every figure
BETAS = [2.0 ** (step / 3) for step in range(-9, 16)]  # times β: the curve of exact optima
FINE = [step / 20 for step in range(21)]


def objective(findings: Findings, plane: Plane) -> Figure:
    """J_α against α: every rule at its own α, the single references (straight lines: J is linear in α), the best value J*_α."""
    figure, axes = canvas(6.4, 4.8)
    _rules(axes, findings, plane, lambda trained: trained.measure("J"))
    for end, style in ((1.0, ":"), (0.0, "-.")):
        single = findings.trained(plane, "exact", end)
        values = [single.measure("J", at=weight).mean for weight in findings.weights]
        name = label("single", end, findings.names(plane.task))
        axes.plot(findings.weights, values, color=GREY, linestyle=style, linewidth=1.2, label=name)
    best = [place.J for weight in FINE if (place := findings.best(plane, weight)) is not None]
    if best:
        axes.plot(FINE, best, color=INK, linewidth=1.2, label="best value J*_α (exact)")
    return _finished(figure, axes, findings, plane, "J_α(π), the objective as asked  (higher is better)")


def gap(findings: Findings, plane: Plane) -> Figure:
    """J*_α − J_α on a logarithmic axis; dashed: the rule's own optimum."""
    figure, axes = canvas(6.4, 4.8)
    _rules(axes, findings, plane, lambda trained: Measure.of(trained.missing() or []))
    for rule in findings.settings.chosen:
        ends = _ends(findings, plane, rule, FINE[1:-1], lambda place: place.gap * plane.beta)
        if ends and max(ends) > 1e-6:
            name = f"{LABELS[rule]}, if trained perfectly"
            axes.plot(FINE[1:-1], ends, color=PALETTE[STYLES[rule]], linestyle=DASHED, linewidth=1, label=name)
    axes.set_yscale("log")
    return _finished(figure, axes, findings, plane, "J*_α − J_α(π) = β KL(π‖π*_α)  (log)")


def reward(findings: Findings, plane: Plane) -> Figure:
    """E_π[r] against α."""
    figure, axes = canvas(6.4, 4.6)
    _rules(axes, findings, plane, lambda trained: trained.measure("reward"))
    for rule in findings.settings.chosen:
        ends = _ends(findings, plane, rule, FINE, lambda place: place.reward)
        if ends:
            axes.plot(FINE, ends, color=PALETTE[STYLES[rule]], linestyle=DASHED, linewidth=1)
    return _finished(figure, axes, findings, plane, "E_π[r]  (dashed: if trained perfectly)")


def plane_of_reward(findings: Findings, plane: Plane) -> Figure:
    """Reward against the mean KL to both references: a line joins a rule's weights, larger marks a larger α;
    β is varied where it was swept."""
    figure, axes = canvas(6.4, 5.2)
    planes = [p for p in findings.planes if (p.task, p.pairs) == (plane.task, plane.pairs)]
    optima = [findings.best(plane, 0.5, beta=plane.beta * factor) for factor in BETAS]
    curve = sorted((sum(place.kl) / 2, place.reward) for place in optima if place is not None)
    if curve:
        axes.plot(*zip(*curve, strict=True), color=INK, linewidth=1.2, label="exact optima at α = ½, every β")
    for rule in findings.settings.chosen:
        for number, each in enumerate(planes):
            path = [findings.trained(each, rule, weight) for weight in findings.weights]
            x, y = zip(*map(_both, path), strict=True)
            colour = PALETTE[STYLES[rule]]
            axes.plot([m.mean for m in x], [m.mean for m in y], color=colour, linewidth=0.9, alpha=0.7)
            inside = [trained for trained in path if 0 < trained.weight < 1]
            for trained in inside:
                named = LABELS[rule] if not number and trained is inside[0] else None
                _mark(axes, trained, colour, MARKERS[STYLES[rule]], 4 + 4 * trained.weight, named)
    for end, marker in ((1.0, "X"), (0.0, "p")):
        for number, each in enumerate(planes):
            named = label("single", end, findings.names(plane.task)) if not number else None
            _mark(axes, findings.trained(each, "exact", end), GREY, marker, 8, named)
    axes.set(xlabel="½ Σₖ KL(π‖πₖ), nats per completion  (lower is nearer to both)", ylabel="expected reward E_π[r]")
    axes.set_title(f"β = {', '.join(f'{p.beta:g}' for p in planes)}", fontsize=10, color=GREY)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _both(trained: Trained) -> tuple[Measure, Measure]:
    return trained.measure("price", at=0.5), trained.measure("reward")


def _mark(axes: Axes, trained: Trained, colour: str, marker: str, size: float, named: str | None) -> None:
    x, y = _both(trained)
    axes.errorbar(
        x.mean,
        y.mean,
        x.error,
        y.error,
        color=colour,
        marker=marker,
        markersize=size,
        linestyle="none",
        capsize=2.5,
        label=named,
    )


def _ends(
    findings: Findings, plane: Plane, rule: str, weights: Sequence[float], number: Callable[[Place], float]
) -> list[float]:
    return [number(place) for weight in weights if (place := findings.end(plane, rule, weight)) is not None]


def _rules(axes: Axes, findings: Findings, plane: Plane, measure: Callable[[Trained], Measure]) -> None:
    """A line with error bars for each rule; the rules are set a little apart, so that bars can be told from each other."""
    for place, rule in enumerate(findings.settings.chosen):
        found = [measure(findings.trained(plane, rule, weight)) for weight in findings.weights]
        apart = [weight + (place - 1) * 0.006 if 0 < weight < 1 else weight for weight in findings.weights]
        axes.errorbar(
            apart,
            [m.mean for m in found],
            [m.error or 0.0 for m in found],
            label=LABELS[rule],
            color=PALETTE[STYLES[rule]],
            marker=MARKERS[STYLES[rule]],
            markersize=5.5,
            linewidth=1.5,
            capsize=2.5,
        )


def _finished(figure: Figure, axes: Axes, findings: Findings, plane: Plane, axis: str) -> Figure:
    one, two = findings.names(plane.task)
    axes.set(xlabel=f"α, the weight of {one}  (0: {two} alone, 1: {one} alone)", ylabel=axis)
    axes.set_title(f"{plane.task}, {findings.settings.training}, β = {plane.beta:g}", fontsize=10, color=GREY)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure
