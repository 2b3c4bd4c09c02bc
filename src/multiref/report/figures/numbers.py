"""A figure's numbers as a table, read from the figure itself, so that no drawing can differ from what stands below it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import AxLine, Line2D
from matplotlib.ticker import FuncFormatter

_MOST = 60
Places = dict[float, str]


@dataclass(frozen=True)
class Series:
    """One name's points; `spread`: half-widths or ranges as text, one a point, or none."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[str] = ()


def read_numbers(figure: Figure) -> tuple[list[str], list[list[str]], str]:
    """(header, rows, caption) of a table: every named series of the first axes, side by side where all have the same x, else a
    row a point. At most 60 rows are shown, evenly chosen; the caption says so."""
    axes = figure.axes[0]
    found = [*_lines(axes), *_error_bars(axes)]
    x_label, y_label = axes.get_xlabel() or "x", axes.get_ylabel() or "y"
    if named := _names(axes):
        header = ["", x_label, "spread"]
        rows = [[named.get(y, each.name), _text(x), spread] for each in found for x, y, spread in _points(each)]
    elif len(found) > 1 and len(found[0].x) > 1 and all(list(each.x) == list(found[0].x) for each in found):
        header = [x_label, *(each.name for each in found)]
        cells = [[_with(y, spread) for _, y, spread in _points(each)] for each in found]
        rows = [[_text(x), *row] for x, *row in zip(found[0].x, *cells, strict=True)]
    else:
        header = ["", x_label, y_label]
        rows = [[each.name, _text(x), _with(y, spread)] for each in found for x, y, spread in _points(each)]
    shown = [rows[n * (len(rows) - 1) // (_MOST - 1)] for n in range(_MOST)] if len(rows) > _MOST else rows
    left_out = f"{_MOST} of {len(rows)} rows, evenly chosen." if len(rows) > _MOST else ""
    return header, shown, left_out


def _lines(axes: Axes) -> Iterator[Series]:
    """Named lines; a filled band is drawn right after its line, which is how it is known."""
    parts = [*axes.get_children(), None]
    for line, after in pairwise(parts):
        if isinstance(line, Line2D) and not isinstance(line, AxLine) and not str(line.get_label()).startswith("_"):
            x, y = np.asarray(line.get_xydata(), dtype=float).T.tolist()
            yield Series(str(line.get_label()), x, y, _band(after, x) if isinstance(after, PolyCollection) else ())


def _band(band: PolyCollection, x: Sequence[float]) -> list[str]:
    corners = [corner for path in band.get_paths() for corner in np.asarray(path.vertices, dtype=float).tolist()]
    heights = ([b for a, b in corners if a == place] for place in x)
    return [f"[{_text(min(each))}, {_text(max(each))}]" if each else "" for each in heights]


def _error_bars(axes: Axes) -> Iterator[Series]:
    for container in axes.containers:
        if isinstance(container, ErrorbarContainer) and isinstance(line := container.lines[0], Line2D):
            x, y = np.asarray(line.get_xydata(), dtype=float).T.tolist()
            spread = [""] * len(x)
            for bars in container.lines[2]:
                assert isinstance(bars, LineCollection)
                for n, ((x0, y0), (x1, y1)) in enumerate(bars.get_segments()):
                    along = "x" if y0 == y1 else "y"
                    low, high, middle = (x0, x1, x[n]) if along == "x" else (y0, y1, y[n])
                    half, even = (high - low) / 2, abs((low + high) / 2 - middle) <= 1e-6 * abs(high - low)
                    bar = f"{along} ± {half:.2g}" if even else f"{along} from {_text(low)} to {_text(high)}"
                    spread[n] = ", ".join(filter(None, (spread[n], bar if half == half else "")))
            yield Series(str(container.get_label()), x, y, spread)


def _names(axes: Axes) -> Places:
    """Where the y axis names its rows: height → name."""
    if not isinstance(axes.yaxis.get_major_formatter(), FuncFormatter):
        return {}
    return {float(place): label.get_text() for place, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)}


def _points(each: Series) -> Iterator[tuple[float, float, str]]:
    return zip(each.x, each.y, each.spread or [""] * len(each.x), strict=True)


def _with(value: float, spread: str) -> str:
    return f"{_text(value)} {spread}".strip()


def _text(value: float) -> str:
    return f"{value:.4g}"
