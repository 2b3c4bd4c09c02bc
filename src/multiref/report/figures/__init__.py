"""The figures of a report, as matplotlib Figures that no window or global state knows:
frontier, methods, plots of curves.

Numbers in, one Figure out; `svg` and `png` give the bytes that `Picture` embeds and a folder keeps.
matplotlib loads with the first figure."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
