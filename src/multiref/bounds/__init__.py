"""Every theorem as a function of its quantities: a number on one screen, with what it assumes and where it comes from.

`found` statements carry the constants of the papers, `derived` ones are ours, `provisional` ones have a form without constants.
Coverage constants come from finite problems or from scores; the conversions say what a letter or an ε means in another paper.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
