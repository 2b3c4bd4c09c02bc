"""One canvas, one palette, one way out for every figure: readable on a phone, told apart without colour."""

import io
import os
import re
from pathlib import Path
from typing import Any, Literal

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from multiref._files import write_whole
from multiref.report.noise import Measure
from multiref.report.shown import visible

# Okabe and Ito's eight colours without black and yellow (too faint on white); every series has its own marker too.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
GREY, INK = "#57606a", "#1b1f24"
# What a page shows in its own colours (the variables of page.html.j2).
_THEME = {INK: "ink", GREY: "quiet", "#888888": "quiet", "#8c959f": "edge", "#e4e8ec": "line", "#ffffff": "paper"}

RC: dict[Any, Any] = {  # matplotlib's own type lists every key
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.labelsize": 10,
    "axes.edgecolor": "#8c959f",
    "axes.labelcolor": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "svg.fonttype": "path",
    "text.color": INK,
    "svg.hashsalt": "multiref",
    "axes.unicode_minus": True,
}


def canvas(width: float = 6.0, height: float = 4.0) -> tuple[Figure, Axes]:
    """A figure of these inches with one pair of axes: two spines, a light grid under the data."""
    with rc_context(RC):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#e4e8ec", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def mark(axes: Axes, x: Measure, y: Measure, **style: Any) -> None:
    """A point with its standard errors."""
    axes.errorbar(x.mean, y.mean, xerr=x.error, yerr=y.error, linestyle="none", capsize=2.5, **style)


def finish(figure: Figure, axes: Axes, x: str, y: str, title: str = "", *, log_x: bool = False, log_y: bool = False) -> Figure:
    """Names and scales of the axes, the title, and the legend below: marks alone, which error bars would cover there."""
    axes.set(xlabel=x, ylabel=y, xscale="log" if log_x else "linear", yscale="log" if log_y else "linear")
    axes.set_title(title, fontsize=10, color=GREY)
    found, names = axes.get_legend_handles_labels()
    marks = [each[0] if isinstance(each, ErrorbarContainer) else each for each in found]
    figure.legend(marks, names, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def _as_text(figure: Figure) -> None:
    """Names are shown as they are: no `$` begins a formula, and what no font can show is escaped."""
    for axes in figure.axes:
        names = [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        for legend in filter(None, (axes.get_legend(), *figure.legends)):
            names += legend.get_texts()
        ticks = [*axes.get_xticklabels(), *axes.get_yticklabels()]
        for text in (*names, *(tick for tick in ticks if "\\mathdefault" not in tick.get_text())):
            text.set_parse_math(False)
            text.set_text(visible(text.get_text()))


def svg(figure: Figure, *, letters: Literal["path", "none"] = "path") -> bytes:
    """The figure as SVG, the same bytes for the same figure. letters: as shapes ("path"), so that no font is needed to read it,
    or as text ("none")."""
    stream = io.BytesIO()
    _as_text(figure)
    with rc_context(RC | {"svg.fonttype": letters}):
        undated = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(stream, metadata=undated)
    figure.set_layout_engine("none")  # it is laid out: drawn again, everything stands where it stood
    return stream.getvalue()


def inline_svg(figure: Figure) -> str:
    """The figure as an element of a page: its text is text, and ink, lines and background are the page's own colours, so that
    it follows light, dark and print."""
    drawn = svg(figure, letters="none").decode()
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn[drawn.index("<svg") :], flags=re.DOTALL)
    drawn = re.sub("|".join(_THEME), lambda found: f"var(--{_THEME[found[0]]})", drawn)
    drawn = drawn.replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans', sans-serif")
    used = set(re.findall(r"#(\w+)[\")]", drawn))
    return re.sub(r' id="(\w+)"', lambda found: found[0] if found[1] in used else "", drawn)


def png(figure: Figure, *, dots_per_inch: int = 160) -> bytes:
    """The figure as PNG."""
    stream = io.BytesIO()
    _as_text(figure)
    with rc_context(RC):
        FigureCanvasAgg(figure)
        figure.savefig(stream, format="png", dpi=dots_per_inch, metadata={"Software": None})
    figure.set_layout_engine("none")
    return stream.getvalue()


def save(figure: Figure, stem: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write <stem>.svg and <stem>.png, each in one step. OutputError where the folder cannot be written."""
    stem = Path(stem)
    written = (stem.with_name(stem.name + ".svg"), stem.with_name(stem.name + ".png"))
    for target, data in zip(written, (svg(figure), png(figure)), strict=True):
        write_whole(target, data)
    return written
