"""A run from a file: what `multiref train`, `sweep` and `evaluate` are made of.

A run is a text. `document.py` reads it, one file a task says what can stand in it and prepares it,
`execute.py` carries it out in a
`folder.py`, and `page.py` shows what came out."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
