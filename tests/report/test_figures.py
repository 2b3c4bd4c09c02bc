"""What a figure draws is what it was given; the same figure gives the same bytes."""

import pytest
from matplotlib.collections import LineCollection

from multiref.errors import ArgumentError
from multiref.report import Estimate
from multiref.report.figures import (
    Curve,
    Method,
    Plot,
    Point,
    draw,
    frontier,
    objective_by_method,
    read_numbers,
    save,
    svg,
)
from multiref.report.noise import Measure


def labels(figure) -> set[str]:  # type: ignore[no-untyped-def]
    return {text.get_text() for legend in figure.legends for text in legend.get_texts()}


def test_frontier_draws_each_policy_at_its_place() -> None:
    points = [
        Point("exact", Measure(0.5, 0.1, 3), Measure(0.9, 0.02, 3)),
        Point("base", Measure(0.1), Measure(0.2), given=True),
    ]
    figure = frontier(points, [(0.6, 1.0), (0.0, 0.1)], optimum=(0.55, 0.95), beta=0.2)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert list(lines["exact optima, every β"].get_xdata()) == [0.0, 0.6]
    (base,) = (container[0] for container in figure.axes[0].containers if container.get_label() == "base")
    assert (base.get_xdata()[0], base.get_ydata()[0]) == (0.1, 0.2)
    assert (lines["π* (exact optimum)"].get_xdata()[0], lines["π* (exact optimum)"].get_ydata()[0]) == (0.55, 0.95)
    assert {"exact", "base"} <= labels(figure)
    assert lines["J as at π* (slope β)"].get_slope() == 0.2


def test_the_legend_shows_marks_without_the_bars_that_would_cover_them() -> None:
    figure = frontier([Point("a", Measure(0.5, 0.1, 3), Measure(0.9, 0.02, 3)), Point("b", Measure(0.1, 0.2, 3), Measure(0.2))])
    (legend,) = figure.legends
    assert [mark.get_marker() for mark in legend.legend_handles] == ["o", "s"]  # type: ignore[union-attr]
    assert not legend.findobj(LineCollection) and figure.axes[0].findobj(LineCollection)


def test_methods_stand_in_the_order_given_with_means() -> None:
    figure = objective_by_method([Method("a", [1.0, 3.0]), Method("b", [5.0], given=True)])
    axes = figure.axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "b"]
    means = [tuple(container[0].get_xdata()) for container in axes.containers]
    assert means == [(2.0,), (5.0,)]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    assert objective_by_method([Method("a", [1.0, 3.0])], scale="log").axes[0].get_xscale() == "log"


def test_curves_show_mean_and_one_standard_error() -> None:
    """Seeds 1 and 3: mean 2, standard error sqrt(2/2) = 1, so the band runs from 1 to 3."""
    figure = Plot("x", "y", [Curve.of_seeds("a", [0, 1], [[1.0, 3.0], [2.0, 2.0]])], log_x=False, log_y=False).figure()
    axes = figure.axes[0]
    assert list(axes.lines[0].get_ydata()) == [2.0, 2.0]
    box = axes.collections[0].get_paths()[0].get_extents()
    assert (box.y0, box.y1) == (1.0, 3.0)


def test_a_slope_stands_in_the_legend_and_a_twin_is_dashed() -> None:
    slope = Estimate(-0.5, -0.6, -0.4)
    full, twin = (Curve("gap", [1.0, 10.0], [1.0, 0.3], slope=slope, place=1, dashed=dashed) for dashed in (False, True))
    figure = Plot("n", "gap", [full, twin, Curve("bound", [1.0, 10.0], [2.0, 1.0], "bound")], ticks=[1, 10]).figure("title")
    axes = figure.axes[0]
    assert labels(figure) == {"gap  (slope −0.50)", "bound"}
    assert axes.get_xscale() == axes.get_yscale() == "log" and axes.get_title() == "title"
    assert [line.get_linestyle() for line in axes.lines] == ["-", "--", "--"]
    assert axes.lines[0].get_color() == axes.lines[1].get_color() != axes.lines[2].get_color()
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "10"]


def test_the_same_figure_gives_the_same_bytes(tmp_path) -> None:  # type: ignore[no-untyped-def]
    make = lambda: objective_by_method([Method("a", [1.0, 3.0]), Method("b", [2.0, 2.5])])  # noqa: E731
    assert svg(make()) == svg(make())
    written = save(make(), tmp_path / "figures" / "objective")
    assert [path.name for path in written] == ["objective.svg", "objective.png"]
    assert written[0].read_bytes() == svg(make())


def test_a_curve_must_have_a_value_for_each_place() -> None:
    with pytest.raises(ArgumentError, match="2 places and 1 values"):
        Curve("a", [1, 2], [1.0])


def test_a_plot_is_written_whole_and_the_same_twice(tmp_path) -> None:  # type: ignore[no-untyped-def]
    measured = Curve("measured", (1.0, 10.0), (1.0, 0.1), low=(0.9, 0.08), high=(1.1, 0.12), slope=Estimate(-1.0, -1.1, -0.9))
    plot = Plot("n", "bound", (measured, Curve("trivial", (1.0, 10.0), (1.0, 1.0), "trivial")))
    for name in ("one/plot.png", "two/plot.png"):
        draw(plot, tmp_path / name, title="a bound")
    first, second = sorted(tmp_path.rglob("*"), key=str)[1], tmp_path / "two/plot.png"
    assert first.read_bytes() == second.read_bytes() and first.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in first.parent.iterdir()] == ["plot.png"]


def test_the_numbers_below_a_figure_are_those_that_it_shows() -> None:
    """One table for every kind: curves side by side with their bands, points with their errors, named rows, and long curves
    thinned, which is said."""
    curves = [Curve.of_seeds("a", [1, 2], [[1.0, 3.0], [4.0, 4.0]]), Curve("b", [1, 2], [5.0, 6.0])]
    steps = Plot("step", "loss", [Curve("c", [1, 2, 3], [3.0, 2.0, 1.0])], log_x=False).figure()
    assert all(float(place).is_integer() for place in steps.axes[0].get_xticks())
    found = read_numbers(Plot("pairs", "loss", curves).figure())
    assert found == (["pairs", "a", "b"], [["1", "2 [1, 3]", "5"], ["2", "4 [4, 4]", "6"]], "")
    points = [
        Point("exact", Measure(0.5, 0.1, 3), Measure(0.9, 0.02, 3)),
        Point("base", Measure(0.1), Measure(0.2), given=True),
    ]
    rows = read_numbers(frontier(points, [(0.6, 1.0), (0.0, 0.1)]))[1]
    assert ["exact", "0.5", "0.9 x ± 0.1, y ± 0.02"] in rows and ["base", "0.1", "0.2"] in rows and len(rows) == 4
    rows = read_numbers(objective_by_method([Method("a", [1.0, 3.0]), Method("b", [5.0], given=True)]))[1]
    assert rows == [["a", "2", "x ± 1"], ["b", "5", ""]]
    _, long, caption = read_numbers(Plot("x", "y", [Curve("c", range(1, 1001), [float(v) for v in range(1000)])]).figure())
    assert len(long) == 60 and (long[0][1], long[-1][1]) == ("1", "1000") and caption.startswith("60 of 1000")
