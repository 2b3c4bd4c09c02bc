"""The published figure at small scale: rules swept over the weight of one reference, offline and online, several seeds each,
with errors.

`sweep(Training(settings), output, …)` trains what is missing, `Findings` asks the records, `write(findings, output)` makes the
page.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
