"""What a score is filed under: the content of prompt and completion, as 16 bytes; and finding many of them among many, fast."""

import hashlib
import json
from collections.abc import Callable, Iterable
from json.encoder import encode_basestring
from typing import Any

import numpy as np

KEY_BYTES = 16
MOST_PARTITIONS = 2**16  # which are told by the first two bytes
_STEP, _FEW = 2**16, 2**12  # keys that are looked at together
_json = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode


def content_key(prompt: Any, completion: Any) -> bytes:
    """Text, Text → 16 bytes: what a score is filed under. Depends on the text and on nothing else.

    key = blake2b-128( canonical JSON of [prompt, completion] ), canonical: UTF-8, keys sorted, no spaces, messages as objects.
    A string and a one-message conversation with the same words are different texts, because a chat template treats them
    differently. What tokenisation adds is a reference's own (`references.identity`), so that one key joins K tokenizers.
    """
    return key_of(text_of(prompt), text_of(completion))


def key_of(prompt: str, completion: str) -> bytes:
    """The content key of two texts that `text_of` wrote."""
    return hashlib.blake2b(f"[{prompt},{completion}]".encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()


def content_keys(prompts: Iterable[Any], completions: Iterable[Any]) -> np.ndarray:
    """The content keys of N completions, [N] of 16 bytes each (numpy dtype V16)."""
    raw = bytearray()
    for prompt, completion in zip(prompts, completions, strict=True):
        raw += content_key(prompt, completion)
    return np.frombuffer(raw, dtype=f"V{KEY_BYTES}")


def side_keys(pairs: Iterable[Any]) -> np.ndarray:
    """P pairs → [P, 2] content keys: of the chosen and of the rejected completion."""
    raw = bytearray()
    for pair in pairs:
        prompt = text_of(pair.prompt)
        raw += key_of(prompt, text_of(pair.chosen)) + key_of(prompt, text_of(pair.rejected))
    return np.frombuffer(raw, dtype=f"V{KEY_BYTES}").reshape(-1, 2)


def text_of(text: Any) -> str:
    """Canonical JSON of a text: a string, or chat messages with every field that the row has.

    A `Conversation` with tools or arguments for the template is an object of the three: its row says more than its messages.
    """
    if isinstance(text, str):
        return encode_basestring(text)  # what the JSON encoder does for a string, without its overhead
    messages = [dict(message) for message in text]
    tools, options = getattr(text, "tools", ()), getattr(text, "chat_template_kwargs", {})
    return _json({"messages": messages, "tools": tools, "chat_template_kwargs": options} if tools or options else messages)


def sort_keys(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[N] keys → order [N] that sorts them, equal ones as they came; repeated [N], in that order: equal to the one before it.
    Of millions of keys few arrays are held at once, and short ones."""
    keys, repeated = as_bytes(keys), np.zeros(len(keys), bool)
    order = np.argsort(keys, kind="stable").astype(_small(keys))
    for start in range(1, len(keys), _STEP):
        part = keys[order[start - 1 : start + _STEP]]
        repeated[start : start + _STEP] = part[1:] == part[:-1]
    return order, repeated


class KeyIndex:
    """N keys, for finding M others in them without a Python loop: both are put in order, so that memory is read forwards.

    order [N] sorts the keys; repeated [N] marks, in that order, a key that is equal to the one before it.
    Where a key occurs more than once, `locate` finds the occurrence that comes first. Of keys that ascend nothing is copied;
    `between` is called now and then while they are read: those before are not needed any more.
    """

    def __init__(self, keys: np.ndarray, between: Callable[[], None] = lambda: None):
        self._keys, self._between, ascending = as_bytes(keys), between, True
        for start in range(0, len(keys), _STEP):
            part = self._keys[start : start + _STEP + 1]
            ascending &= bool((part[1:] > part[:-1]).all())
            between()
        if ascending:
            self.order, self.repeated = np.arange(len(keys), dtype=_small(keys)), np.broadcast_to(np.False_, len(keys))
        else:
            self.order, self.repeated = sort_keys(keys)
            self._keys = self._keys[self.order]

    def locate(self, wanted: np.ndarray) -> np.ndarray:
        """[M] keys → [M] positions among the N keys, −1 where a key is not there."""
        wanted = as_bytes(wanted)
        found = np.full(len(wanted), -1, self.order.dtype)
        order = np.argsort(wanted) if len(self._keys) else found[:0]
        for start in range(0, len(order), _FEW):
            part = order[start : start + _FEW]
            place = np.minimum(np.searchsorted(self._keys, wanted[part]), len(self._keys) - 1)
            there = self._keys[place] == wanted[part]
            found[part[there]] = self.order[place[there]]
            self._between()
        return found


def _small(keys: np.ndarray) -> type[np.signedinteger]:
    """The type of a place among them."""
    return np.int32 if len(keys) < 2**31 else np.int64


def as_bytes(keys: np.ndarray) -> np.ndarray:
    """[N] keys as NumPy compares them: byte by byte."""
    return np.ascontiguousarray(keys).view(f"S{KEY_BYTES}")


def partition_starts(partitions: int) -> np.ndarray:
    """With which bytes the keys of each partition begin, at the least: which one a key is in depends on the key alone."""
    return (np.arange(partitions) * MOST_PARTITIONS // partitions).astype(">u2").view("S2")
