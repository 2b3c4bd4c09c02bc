"""The figures of a report, as matplotlib Figures that no window or global state knows: frontier, methods, curves, log-log.

Numbers in, one Figure out; `svg` and `png` give the bytes that `Picture` embeds and a folder keeps."""

from multiref.report.figures.canvas import png, save, svg
from multiref.report.figures.curves import Series, curves, log_log
from multiref.report.figures.frontier import Point, frontier
from multiref.report.figures.methods import Method, objective_by_method

__all__ = ["Method", "Point", "Series", "curves", "frontier", "log_log", "objective_by_method", "png", "save", "svg"]
