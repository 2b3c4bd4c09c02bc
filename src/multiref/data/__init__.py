"""Preference pairs and where they come from: files and rows in TRL's preference format become `Pair`.

Text is a string or a tuple of chat messages; how text becomes tokens is another room's work (`models.encoding`).
Public: Message, Pair, Text, as_pair, read_pairs.
"""

from multiref.data.pairs import Message, Pair, Text, as_pair
from multiref.data.reading import read_pairs

__all__ = ["Message", "Pair", "Text", "as_pair", "read_pairs"]
