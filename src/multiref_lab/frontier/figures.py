"""The sweep's figures: curves over the weight α with standard errors, dashed where a rule would end if training were perfect,
and the plane of reward and KL."""

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from multiref.report.figures import GREY, INK, MARKERS, PALETTE, Curve, Plot, canvas, finish, mark
from multiref_lab.frontier.findings import Findings, Place, Plane, Trained
from multiref_lab.frontier.rules import LABELS, alone

STYLES = {"exact": 0, "mrpo": 1, "multi-dpo": 2, "authors": 3}  # place in the palette of a rule, the same in every figure
BETAS = [2.0 ** (step / 3) for step in range(-9, 16)]  # times β: the curve of exact optima
FINE = [step / 20 for step in range(21)]
SINGLES = (1.0, 0.0)


def objective(findings: Findings, plane: Plane) -> Figure:
    """J_α against α: every rule at its own α, the single references (straight lines: J is linear in α), the best value J*_α."""
    curves = _rules(findings, plane, lambda trained: trained.values("J"))
    for end in SINGLES:
        single = findings.trained(plane, "exact", end)
        values = [single.measure("J", at=weight).mean for weight in findings.weights]
        name = alone(end, findings.names(plane.task))
        curves.append(Curve(name, findings.weights, values, "trivial", dashed=not end))
    best = [place.J for weight in FINE if (place := findings.best(plane, weight)) is not None]
    curves += [Curve("best value J*_α (exact)", FINE, best, "theory")] if best else []
    return _over_weights(findings, plane, "J_α(π), the objective as asked  (higher is better)", curves)


def gap(findings: Findings, plane: Plane) -> Figure:
    """J*_α − J_α on a logarithmic axis; dashed: the rule's own optimum."""
    curves = _rules(findings, plane, lambda trained: trained.missing() or [])
    curves += _ends(findings, plane, FINE[1:-1], lambda place: place.gap * plane.beta, least=1e-6)
    return _over_weights(findings, plane, "J*_α − J_α(π) = β KL(π‖π*_α)  (log)", curves, log_y=True)


def reward(findings: Findings, plane: Plane) -> Figure:
    """E_π[r] against α."""
    curves = _rules(findings, plane, lambda trained: trained.values("reward"))
    curves += _ends(findings, plane, FINE, lambda place: place.reward)
    return _over_weights(findings, plane, "E_π[r]", curves)


def plane_of_reward(findings: Findings, plane: Plane) -> Figure:
    """Reward against the mean KL to both references: a line joins a rule's weights, larger marks a larger α;
    β is varied where it was swept."""
    figure, axes = canvas(6.4, 5.2)
    planes = [p for p in findings.planes if (p.task, p.pairs) == (plane.task, plane.pairs)]
    optima = [findings.best(plane, 0.5, beta=plane.beta * factor) for factor in BETAS]
    if curve := sorted((sum(place.kl) / 2, place.reward) for place in optima if place is not None):
        axes.plot(*zip(*curve, strict=True), color=INK, linewidth=1.2, label="exact optima at α = ½, every β")
    for number, each in enumerate(planes):
        for rule in findings.settings.chosen:
            path = [findings.trained(each, rule, weight) for weight in findings.weights]
            points = [(trained.measure("price", at=0.5).mean, trained.measure("reward").mean) for trained in path]
            colour, marker = PALETTE[STYLES[rule]], MARKERS[STYLES[rule]]
            axes.plot(*zip(*points, strict=True), color=colour, linewidth=0.9, alpha=0.7)
            for place, trained in enumerate(t for t in path if 0 < t.weight < 1):
                _mark(axes, trained, colour, marker, 4 + 4 * trained.weight, None if number or place else LABELS[rule])
        for end, marker in zip(SINGLES, "Xp", strict=True):
            named = None if number else alone(end, findings.names(plane.task))
            _mark(axes, findings.trained(each, "exact", end), GREY, marker, 8, named)
    title = f"β = {', '.join(f'{p.beta:g}' for p in planes)}"
    return finish(
        figure, axes, "½ Σₖ KL(π‖πₖ), nats per completion  (lower is nearer to both)", "expected reward E_π[r]", title
    )


def _mark(axes: Axes, trained: Trained, colour: str, marker: str, size: float, label: str | None) -> None:
    x, y = trained.measure("price", at=0.5), trained.measure("reward")
    mark(axes, x, y, color=colour, marker=marker, markersize=size, label=label)


def _rules(findings: Findings, plane: Plane, values: Callable[[Trained], Sequence[float]]) -> list[Curve]:
    """A number of every rule at every weight."""
    weights = findings.weights
    found = {rule: [values(findings.trained(plane, rule, at)) for at in weights] for rule in findings.settings.chosen}
    return [Curve.of_seeds(LABELS[rule], weights, each, place=STYLES[rule]) for rule, each in found.items()]


def _ends(
    findings: Findings, plane: Plane, weights: Sequence[float], number: Callable[[Place], float], *, least: float | None = None
) -> list[Curve]:
    """Where each rule would end if training were perfect; only those that somewhere have more than `least` of it."""
    curves = []
    for rule in findings.settings.chosen:
        ends = [number(place) for weight in weights if (place := findings.end(plane, rule, weight)) is not None]
        if ends and (least is None or max(ends) > least):
            curves.append(Curve(f"{LABELS[rule]}, if trained perfectly", weights, ends, "bound", place=STYLES[rule]))
    return curves


def _over_weights(findings: Findings, plane: Plane, axis: str, curves: Sequence[Curve], *, log_y: bool = False) -> Figure:
    one, two = findings.names(plane.task)
    names = f"α, the weight of {one}  (0: {two} alone, 1: {one} alone)"
    title = f"{plane.task}, {findings.settings.training}, β = {plane.beta:g}"
    return Plot(names, axis, curves, log_x=False, log_y=log_y).figure(title)
