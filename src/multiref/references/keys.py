"""What a score is filed under: the content of prompt and completion, as 16 bytes; and finding many of them among many, fast."""

import hashlib
import json
from collections.abc import Iterable
from json.encoder import encode_basestring
from typing import Any

import numpy as np

KEY_BYTES = 16
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
    """[N] keys → order [N] that sorts them, equal ones as they came; repeated [N], in that order: equal to the one before.
    Of millions of keys few arrays are held at once, and short ones."""
    first, second = _halves(keys)
    order = np.argsort(first, kind="stable").astype(np.int32 if len(keys) < 2**31 else np.int64)
    first = first[order]
    same = np.flatnonzero(first[1:] == first[:-1])
    before, after = second[order[same]], second[order[same + 1]]
    if (before > after).any():  # equal in the first half alone, which takes 2^32 keys to expect
        order = np.lexsort((second, _halves(keys)[0])).astype(order.dtype)
        before, after = second[order[same]], second[order[same + 1]]
    repeated = np.zeros(len(keys), bool)
    repeated[same[before == after] + 1] = True
    return order, repeated


class KeyIndex:
    """A sorted view of N keys, for finding M others in it: O((N + M) log N) and no Python loop.

    order [N] sorts the keys; repeated [N] marks, in that order, a key that is equal to the one before it.
    Where a key occurs more than once, `locate` finds the occurrence that comes first.
    """

    def __init__(self, keys: np.ndarray):
        self.order, self.repeated = sort_keys(keys)
        first, self._second = _halves(keys)
        self._first = first[self.order]

    def locate(self, wanted: np.ndarray) -> np.ndarray:
        """[M] keys → [M] positions among the N keys, −1 where a key is not there."""
        if len(self.order) == 0:
            return np.full(len(wanted), -1)
        first, second = _halves(wanted)
        last = len(self.order) - 1
        place = np.minimum(np.searchsorted(self._first, first), last)
        # Different keys with equal first halves lie next to each other. It takes 2^32 keys to expect one; an index should not
        # err even then.
        while (behind := (self._first[place] == first) & (self._second[self.order[place]] < second) & (place < last)).any():
            place = place + behind
        found = self.order[place]
        return np.where((self._first[place] == first) & (self._second[found] == second), found, -1)


def _halves(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two 64-bit halves of each key, read big-endian, so that comparing numbers compares bytes; the second as it lies
    there, no copy."""
    pairs = np.ascontiguousarray(keys).view(">u8").reshape(-1, 2)
    return pairs[:, 0].astype(np.uint64), pairs[:, 1]
