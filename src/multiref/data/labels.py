"""Which of two sides a label prefers, in the ways in which people write it."""

import math
import re
from collections.abc import Collection, Hashable, Iterable, Mapping
from typing import Literal, TypeAlias

from multiref.errors import DataError

Side: TypeAlias = Literal["first", "second", "tie"]
_TIES = {"tie", "tied", "both", "neither", "equal", "draw", "same", "none", "tie (bothbad)", "bothbad", "both bad", "both good"}
_ENDINGS = ("a", "b"), ("0", "1"), ("1", "2"), ("first", "second"), ("left", "right")
_ADVICE = "Say what they mean: columns: {label: …, first: …, second: …, tie: …}, first being the side that is named as chosen."


def stem(name: str) -> tuple[str, str]:
    """response_a → (response, a): a column's name without what tells two sides apart, and that."""
    found = re.fullmatch(r"(.*?)[ _.-]?(a|b|0|1|2|first|second|left|right)", name.lower())
    return (found[1], found[2]) if found else (name.lower(), "")


def sides(names: Collection[str]) -> list[tuple[str, str]]:
    """Pairs of columns that differ in their ending alone: [(response_a, response_b), …]."""
    by = {stem(name): name for name in names if stem(name)[1]}
    return [
        (by[root, a], by[root, b])
        for a, b in _ENDINGS
        for root in dict.fromkeys(root for root, _ in by)
        if (root, a) in by and (root, b) in by
    ]


def meaning(values: Iterable[object], first: str, second: str, given: Mapping[str, object], where: str) -> dict[Hashable, Side]:
    """What each label that occurs in a data set means.

    "a" and "b", the columns' names, first and second, tie and its like have one meaning. Numbers: 1 and 2 (0 a tie) where there
    is a 2, or for columns that end in 1 and 2; else 0 and 1, which count from zero.

    Args:
        values: every label of the data set. first, second: the columns of the sides.
        given: what the user says, {"first": value, "second": value, "tie": value}: nothing is guessed then.

    Raises: DataError for labels that can be read in two ways, or in none.
    """
    found = {plain(value) for value in values} - {None}
    if given:
        told: dict[Hashable, Side] = {plain(value): side for side, value in given.items()}  # type: ignore[misc]
        if unknown := sorted(map(repr, found - told.keys())):
            raise DataError(f"{where}: the label {unknown[0]} is none of those that were named ({_list(told)}). {_ADVICE}")
        return told
    words = _words(first, second)
    known = {value: words[value] for value in found if isinstance(value, str) and value in words}
    rest = found - known.keys()
    numbers = {value for value in rest if isinstance(value, int)}
    if rest - numbers:
        raise DataError(f"{where}: the labels are {_list(found)}, and {_list(rest - numbers)} is no side. {_ADVICE}")
    return known | (_numbers(numbers, stem(first)[1], where) if numbers else {})


def plain(value: object) -> Hashable:
    """A label as it is compared: words in small letters (true and false, too: a CSV and the command line have no others), whole
    numbers as numbers."""
    if value is None:
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return int(value) if math.isfinite(value) and value == int(value) else value
    text = str(value).strip().lower()
    if re.fullmatch(r"-?\d{1,9}(\.0*)?", text):  # 1.0, as pandas writes whole numbers where one is missing
        return int(text.partition(".")[0])
    return (text if text in _TIES else text.replace(" ", "_")) or None


def _words(first: str, second: str) -> dict[str, Side]:
    words: dict[str, Side] = dict.fromkeys(_TIES, "tie")
    for one, other in _ENDINGS:
        for root in ("model_", "response_", "output_", "answer_", "assistant_", "option_", *(() if one.isdigit() else ("",))):
            words |= {f"{root}{one}": "first", f"{root}{other}": "second"}
    return words | {first.lower(): "first", second.lower(): "second"}


def _numbers(found: set[int], ending: str, where: str) -> dict[Hashable, Side]:
    counted: dict[Hashable, Side] = {0: "first", 1: "second"}
    one_two: dict[Hashable, Side] = {1: "first", 2: "second", 0: "tie"}
    if ending == "0" and found <= {0, 1, 2}:
        return {**counted, 2: "tie"}
    if found <= {0, 1, 2} and ((2 in found and (0 not in found or ending == "1")) or (ending == "1" and found == {1})):
        return one_two
    if found == {0, 1} and ending != "1":
        return counted
    raise DataError(f"{where}: the labels are {_list(found)}, which can be read in more than one way. {_ADVICE}")


def _list(values: Iterable[object]) -> str:
    shown = sorted(map(repr, values))
    return ", ".join(shown[:6]) + (", …" if len(shown) > 6 else "")
