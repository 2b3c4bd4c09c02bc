"""Preference pairs and where they come from: files and rows in TRL's preference format become `Pair`.

Text is a string, a tuple of chat messages, or a `Conversation` (which has tools and template arguments too); how text becomes
tokens is another room's work (`models.encoding`).
Public: Conversation, Message, Pair, Text, as_pair, as_pairs, as_prompt, read_pairs.
"""

from multiref.data.pairs import Pair, as_pair, as_pairs, as_prompt
from multiref.data.reading import read_pairs
from multiref.data.text import Conversation, Message, Text

__all__ = ["Conversation", "Message", "Pair", "Text", "as_pair", "as_pairs", "as_prompt", "read_pairs"]
