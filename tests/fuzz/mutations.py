"""Inputs that are nearly right: a good one with a few values, keys or bytes changed."""

import copy
import json
from collections.abc import Iterator
from random import Random
from typing import Any

NUMBERS: list[Any] = [0, -1, 1, 5, 1e-320, 1e-308, 1e308, -1e308, float("inf"), float("-inf"), float("nan"), 10**299, 2**31,
                      2**63, 2**64, 0.1, 1e16]  # fmt: skip
TEXTS: list[Any] = ["", "x", "1", "[/b]", "[red]", "\ud800", "\udcff", "😀", "\0", "a" * 3000, "a/b", "..", "~", "{}", "%s",
                    "http://", "${HOME}", "cuda:99"]  # fmt: skip
ODD = [*NUMBERS, *TEXTS, None, True, [], {}, [[]], [{}], {"a": {}}, [1] * 1000, [None], {"": 0}, {"a": [1, "b"]}]
BITS = [b"", b"{", b"[", b'"', b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"NaN", b"1e999", b"}", b"]", b"\\ud800", b"\n",
        b"\r\n", b"&a ", b"*a", b"!!python/name:os ", b": ", b"- ", b"9" * 400, b"[" * 3000, b"\t", b"---\n"]  # fmt: skip


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a nested value but the whole."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*place, key)
        yield from places(value[key], (*place, key))


def change(value: Any, random: Random) -> Any:
    """A few values replaced, removed, repeated, renamed or wrapped."""
    value = copy.deepcopy(value)
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        known = list(places(value))
        if not known:
            return copy.deepcopy(random.choice(ODD))
        *around, key = random.choice(known)
        here = value
        for part in around:
            here = here[part]
        match random.choice(["set", "set", "set", "remove", "repeat", "rename", "wrap"]):
            case "set":
                here[key] = copy.deepcopy(random.choice(ODD))
            case "remove":
                del here[key]
            case "repeat" if isinstance(here, list):
                here.insert(key, copy.deepcopy(here[key]))
            case "rename" if isinstance(here, dict):
                here[str(random.choice(ODD))[:40]] = here.pop(key)
            case _:
                here[key] = random.choice([[here[key]], {"a": here[key]}])
    return value


def damage(content: bytes, random: Random) -> bytes:
    """A few bytes flipped, put in, cut out, or the end cut off."""
    for _ in range(random.choice([1, 1, 2, 4])):
        at = random.randrange(len(content) + 1)
        match random.choice(["flip", "put", "put", "cut", "end"]):
            case "flip" if at < len(content):
                content = content[:at] + bytes([content[at] ^ (1 << random.randrange(8))]) + content[at + 1 :]
            case "put":
                content = content[:at] + random.choice(BITS) + content[at:]
            case "cut":
                content = content[:at] + content[at + random.randrange(1, 20) :]
            case "end":
                content = content[:at]
    return content


def dump(value: Any) -> bytes:
    """JSON, which YAML reads too; half characters as escapes."""
    return json.dumps(value).encode()
