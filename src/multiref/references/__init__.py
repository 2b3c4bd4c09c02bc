"""References: K frozen models → scores of completions, computed once and stored.

`References({...}).score(pairs, store=…)` gives `SequenceScores`, joined to data by content;
the kinds of reference are behind one protocol (`protocol.py`), the store behind `Store`, and where the work runs behind an
engine (local or ray). Names are imported when first used: a store can be read without loading what runs models.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
