"""Preference pairs and where they come from: files and rows in TRL's preference format become `Pair`.

Text is a string, a tuple of chat messages, or a `Conversation` (which has tools and template arguments too); how text becomes
tokens is another room's work (`models.encoding`).
Public: Conversation, Message, Pair, PrivatePairs, Text, as_pair, as_pairs, as_prompt, privatise, read_pairs.
"""

from multiref.data.pairs import Pair, as_pair, as_pairs, as_prompt
from multiref.data.privacy import PrivatePairs, privatise
from multiref.data.reading import read_pairs
from multiref.data.text import Conversation, Message, Text

__all__ = [
    "Conversation",
    "Message",
    "Pair",
    "PrivatePairs",
    "Text",
    "as_pair",
    "as_pairs",
    "as_prompt",
    "privatise",
    "read_pairs",
]
