"""JSON from outside → plain values: bounded in depth and digits, and nothing that reads in two ways."""

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from multiref._files import MIB, decode
from multiref.errors import DataError, MultirefError

DEPTH = 64
DIGITS = 300  # a whole number of so many still is a float
# a string that never ends is one match too: else each quote in it would be tried as the begin of another
_NESTED = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(
    content: str | bytes,
    where: str,
    *,
    error: type[MultirefError] = DataError,
    constants: bool = False,
    depth: int = DEPTH,
    expected: str = "",
) -> Any:
    """One JSON document.

    Args:
        where: file and row, for messages. error: what is raised.
        constants: whether NaN, Infinity and -Infinity, which JSON does not have, are numbers: of files that we write.
        depth: levels of lists and objects.
        expected: a sentence for the end of messages.

    Raises: `error` for what is no JSON, a key that stands twice in an object, a number that is no float, half a character
    (a lone surrogate), or more than `depth` levels.
    """
    text = decode(content, where, first=True, error=error) if isinstance(content, bytes) else content.removeprefix("\ufeff")
    try:
        _check_depth(text, depth)
        value = (_LENIENT if constants else _STRICT).decode(text)
        if "\\u" in text and _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeEncodeError as wrong:
        raise error(_said(where, "a text has half of a character (a lone \\ud800 to \\udfff)", expected)) from wrong
    except ValueError as wrong:
        raise error(_said(where, f"not valid JSON ({wrong})", expected)) from wrong


def parse_items(text: str, where: str, *, longest: int = 16 * MIB) -> Iterator[Any]:
    """The objects of a list, one after the other, each by `parse_json`: memory for one of them at a time.
    Also DataError for what is no list of objects, and for an object of more than `longest` characters."""
    level, number, start, end = 0, 0, 0, 0
    for match in _NESTED.finditer(text):
        mark = match[0]
        if level == 0:
            if mark != "[" or text[: match.start()].strip():
                break
            level, end = 1, match.end()
        elif level == 1:
            between = text[end : match.start()].strip()
            if mark == "]" and not between and not text[match.end() :].strip():
                return
            if mark != "{" or between != ("," if number else ""):
                break
            level, number, start = 2, number + 1, match.start()
        elif mark in "[{]}":
            level += 1 if mark in "[{" else -1
            if level == 1:
                end = match.end()
                if end - start > longest:
                    raise DataError(f"{where}:{number}: the row has more than {longest:,} characters; expected a shorter one.")
                yield parse_json(text[start:end], f"{where}:{number}", constants=True)
    raise DataError(f"{where}: not valid JSON after row {number}; expected a list of objects, [{{…}}, {{…}}].")


def _said(where: str, problem: str, expected: str) -> str:
    return f"{where}: {problem}. {expected}".rstrip()


def _check_depth(text: str, depth: int) -> None:
    """Before it is parsed: a parser that calls itself ends where the stack does."""
    if text.count("[") + text.count("{") <= depth:
        return
    level = 0
    for match in _NESTED.finditer(text):
        mark = match[0]
        if mark in "[{":
            level += 1
            if level > depth:
                raise ValueError(f"lists and objects more than {depth} deep")
        elif mark in "]}":
            level -= 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:40]!r} stands twice in one object")
    return found


def _whole(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits, at most {DIGITS} are read")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"the number {digits[:40]} is beyond a float's range")
    return value


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


_STRICT = json.JSONDecoder(object_pairs_hook=_object, parse_int=_whole, parse_float=_float, parse_constant=_refuse)
_LENIENT = json.JSONDecoder(object_pairs_hook=_object, parse_int=_whole, parse_float=_float)
