"""What a run shows to people: one self-contained HTML page (`write_page` of blocks), tables with errors, figures, a model card.

Nothing here computes a result: numbers come in, pages and pictures go out; only `paired` judges,
whether a difference is within noise."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
