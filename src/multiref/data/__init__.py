"""Preference pairs and where they come from: files, folders, the hub and rows in memory, in the formats people have, become
`Pair`s.

Text is a string, a tuple of chat messages, or a `Conversation` (which has tools and template arguments too); how text becomes
tokens is another room's work (`models.encoding`).
Public: Conversation, Message, Pair, PrivatePairs, Selection, Text, as_pair, as_pairs, as_prompt, privatise, read, read_pairs.
"""

from multiref.data.pairs import Pair, as_pair, as_prompt
from multiref.data.privacy import PrivatePairs, privatise
from multiref.data.reading import Selection, as_pairs, read, read_pairs
from multiref.data.text import Conversation, Message, Text

__all__ = [
    "Conversation",
    "Message",
    "Pair",
    "PrivatePairs",
    "Selection",
    "Text",
    "as_pair",
    "as_pairs",
    "as_prompt",
    "privatise",
    "read",
    "read_pairs",
]
