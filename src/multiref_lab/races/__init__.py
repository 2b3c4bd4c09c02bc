"""Bilevel problems, many seeds at once, and the race of online algorithms on worlds in which everything is known.

Linear rewards (`linear_world`): where each upper objective ends, what each estimator does,
classes that cannot hold the Gibbs policy. Transformers on enumerable worlds (`enumerable_world`):
every method under one budget of labels. `python -m multiref_lab.races` runs the race.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
