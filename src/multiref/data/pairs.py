"""A preference pair, and how a row of TRL's preference format becomes one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from multiref.errors import DataError

Message: TypeAlias = dict[str, str]  # {"role": …, "content": …}
Text: TypeAlias = str | tuple[Message, ...]


@dataclass(frozen=True)
class Pair:
    """A prompt, the completion that was preferred, and the one that was not.

    All three are strings, or all three are tuples of chat messages. `origin` ("pairs.jsonl:12", rows counted from 1) is for
    error messages only: nothing is ever joined or cached by it. `margin`: how far a reward model is to put chosen above
    rejected.
    """

    prompt: Text
    chosen: Text
    rejected: Text
    origin: str = ""
    margin: float = 0.0


def as_pair(row: Mapping[str, object] | Pair, *, origin: str = "") -> Pair:
    """One row of TRL's preference format → `Pair`.

    The row has `chosen` and `rejected`, strings or lists of messages, and usually `prompt`. Without one (or where the prompt
    is a string and the sides are conversations) the prompt is what both sides have in common, as TRL's `extract_prompt` takes
    it: the longest common beginning, a space before the first difference going to the completions.

    Errors: DataError naming `origin` for a side that is missing, empty, no text, or the same as the other.
    """
    if isinstance(row, Pair):
        return row
    where = origin or "row"
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: found {type(row).__name__}, expected an object with prompt, chosen and rejected.")
    chosen, rejected = (_side(row, side, where) for side in ("chosen", "rejected"))
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise DataError(f"{where}: one of chosen and rejected is a string, the other a list of messages; make both the same.")
    prompt = _text(row["prompt"], "prompt", where) if row.get("prompt") is not None else None
    if isinstance(prompt, tuple) and isinstance(chosen, str):
        raise DataError(f"{where}: the prompt is a list of messages but the completions are strings; make all three the same.")
    implicit = prompt is None or isinstance(prompt, str) != isinstance(chosen, str)
    if prompt is None or implicit:
        prompt, chosen, rejected = _split_common(chosen, rejected)
    pair = Pair(prompt, chosen, rejected, origin, _margin(row, where))
    _check_sides(pair, where, implicit)
    return pair


def _side(row: Mapping[str, object], name: str, where: str) -> Text:
    if row.get(name) is None:
        known = ", ".join(map(str, list(row)[:8])) or "nothing"
        raise DataError(
            f"{where}: no `{name}`; found {known}. A preference row needs chosen and rejected (and usually prompt)."
        )
    return _text(row[name], name, where)


def _margin(row: Mapping[str, object], where: str) -> float:
    value = row.get("margin")
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"{where}: `margin` is {value!r}, expected a finite number, or no such column.")
    return float(value)


def _text(value: object, name: str, where: str) -> Text:
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return tuple(_message(message, f"{name}[{index}]", where) for index, message in enumerate(value))
    shown = repr(value)
    shown = shown if len(shown) <= 40 else shown[:37] + "..."
    raise DataError(f"{where}: `{name}` is {shown} ({type(value).__name__}), expected a string or a list of chat messages.")


def _message(value: object, name: str, where: str) -> Message:
    if not isinstance(value, Mapping) or not isinstance(value.get("role"), str) or not isinstance(value.get("content"), str):
        raise DataError(f'{where}: `{name}` is no chat message; expected {{"role": string, "content": string}}.')
    return {"role": value["role"], "content": value["content"]}


def _split_common(chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    """What both sides begin with, and the rest of each."""
    length = 0
    while length < min(len(chosen), len(rejected)) and chosen[length] == rejected[length]:
        length += 1
    if isinstance(chosen, str) and length > 0 and chosen[length - 1] == " ":
        length -= 1
    return chosen[:length], chosen[length:], rejected[length:]


def _check_sides(pair: Pair, where: str, implicit: bool) -> None:
    if pair.chosen == pair.rejected:
        raise DataError(f"{where}: chosen and rejected are the same; such a row says nothing about preference, remove it.")
    for name, side in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        empty = not side.strip() if isinstance(side, str) else not any(message["content"].strip() for message in side)
        if empty:
            after, advice = (" after the part that both sides share", ", or give a `prompt` column") if implicit else ("", "")
            raise DataError(f"{where}: `{name}` is empty{after}; expected a completion. Remove the row{advice}.")
