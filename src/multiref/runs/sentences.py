"""What pydantic found wrong, as one of our sentences: found …, expected ….
No tag, no arm of a union, no word of pydantic's shows."""

import dataclasses
import difflib
import json
import re
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from multiref.runs.yaml_values import SHORT, Place, Plain, kind_of

_TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_KINDS = {
    "string_type": "text",
    "float_type": "a number",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type", "dataclass_type"), "keys and values"),
    "none_required": "nothing",
    "finite_number": "a finite number",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "at most {le:g}",
    "too_short": "at least {min_length} in it",
    "too_long": "at most {max_length} in it",
    "missing": "two numbers or more",  # of a list of fixed length: keys that are missing have a sentence of their own
}


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a sentence: "; did you mean …?" with the known word that is closest, or what is known where none is."""
    names = sorted(known)
    return _close(word, names) or (f"; known are {', '.join(names)}." if 0 < len(names) <= 40 else ".")


def sentence(error: ValidationError, values: Plain, kind: object) -> tuple[Place, str]:
    """(place, what is wrong there) of the first mistake; several findings at one place, as of a union's arms, are one."""
    errors = error.errors(include_url=False)
    places = [_place(each, values) for each in errors]
    first = errors[0]
    place, found = places[0], _at(values, places[0])
    match first["type"]:
        case "missing" if isinstance(_at(values, place[:-1]), dict):
            return place, "missing; expected a value, for there is no default."
        case "unexpected_keyword_argument" | "extra_forbidden":
            return place, f"unknown key{nearest(str(place[-1]), _fields(kind, place[:-1]))}"
        case "union_tag_not_found" | "union_tag_invalid":
            context = first["ctx"]
            tag = context["discriminator"].strip("'")
            known = [name.strip("'") for name in context.get("expected_tags", "").split(", ") if name]
            place = (*place, tag)
            if "tag" not in context and isinstance(found, dict):
                return place, "missing; it says which of them is meant."
            if "tag" not in context:
                return place, _found(found, ["keys and values"])
            return place, f"found {context['tag']!r}, expected one of {', '.join(known)}{_close(context['tag'], known) or '.'}"
        case "value_error":
            return _own(str(first["ctx"]["error"]), place, found)
    if isinstance(found, dict) and SHORT in found and len(found) > 1:  # `--set` laid a key beside a text
        key = next(each for each in found if each != SHORT)
        return (*place, key), f"{place[-1]} is {found[SHORT]!r} there, which has no keys."
    same = [each for each, there in zip(errors, places, strict=True) if there == place]
    return place, _found(found, list(dict.fromkeys(_expected(each) for each in same)), same)


def meant(error: ValidationError, values: Plain) -> list[tuple[Place, Plain]]:
    """(place, value) of what a person means where another kind was found: 3.0 and 1e3 for whole numbers, 'false' for false,
    and `no` where it is one of the words, which YAML reads as false."""
    found: dict[Place, Plain] = {}
    for each in error.errors(include_url=False):
        place = _place(each, values)
        value = _at(values, place)
        if each["type"] in ("int_type", "int_from_float") and isinstance(value, float) and value.is_integer():
            found[place] = int(value)
        elif each["type"] == "bool_type" and isinstance(value, str) and value.strip().lower() in _TRUTHS:
            found[place] = _TRUTHS[value.strip().lower()]
        elif each["type"] in ("literal_error", "enum") and isinstance(value, bool):
            words = [word for word in _words(each) if _TRUTHS.get(word) is value]
            found |= {place: words[0]} if words else {}
    return list(found.items())


def _own(said: str, place: Place, found: Plain) -> tuple[Place, str]:
    """Our own words: where they begin with a key of the value (`steps: expected …`, `dtype is …`), that key is the place."""
    key = r"([\w\[\]-]+)(: | is )"
    while isinstance(found, dict) and (match := re.match(key, said)) and (match[2] == ": " or match[1] in found):
        place, found = (*place, match[1]), found.get(match[1])
        said = said.removeprefix(f"{match[1]}: ")
        if match[2] == " is ":
            break
    return place, said


def _found(found: Plain, expected: Sequence[str], errors: Sequence[Any] = ()) -> str:
    text = repr(found) if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
    shown = text if len(text) <= 40 else text[:37] + "..."
    words = [name for each in errors if each["type"] in ("literal_error", "enum") for name in _words(each)]
    near = _close(found, words) if isinstance(found, str) else ""
    kind = f" ({kind_of(found)})" if not words and found is not None else ""
    return f"found {shown}{kind}, expected {' or '.join(expected)}{near or '.'}"


def _expected(error: Any) -> str:
    if error["type"] in ("literal_error", "enum"):
        return "one of " + ", ".join(_words(error)) if len(_words(error)) > 1 else _words(error)[0]
    if error["type"] in _KINDS:
        return _KINDS[error["type"]].format(**error.get("ctx", {}))
    words = str(error["msg"]).removeprefix("Input should be ").removeprefix("a valid ")
    return words[:1].lower() + words[1:]


def _words(error: Any) -> list[str]:
    return re.findall(r"'([^']*)'", error["ctx"]["expected"]) or [error["ctx"]["expected"]]


def _close(word: object, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    return f"; did you mean `{close[0]}`?" if close else ""


def _place(error: Any, values: Plain) -> Place:
    """Where in the values an error is: its location without what names the arms of unions, which no value has."""
    place: list[str | int] = []
    here: Any = values
    *around, last = error["loc"] or (None,)
    for part in (*around, last):
        held = part in here if isinstance(here, dict) else isinstance(part, int) and isinstance(here, list) and part < len(here)
        if held:
            here = here[part]
            place.append(part)
    if error["type"] == "missing" and isinstance(here, dict) and last is not None:
        place.append(last)
    return tuple(place)


def _at(values: Plain, place: Place) -> Plain:
    here: Any = values
    for part in place:
        here = here.get(part) if isinstance(here, dict) else here[part]
    found: Plain = here
    return found


def _fields(kind: object, place: Place) -> set[str]:
    """The keys that are known at a place of a type."""
    if (read := getattr(kind, "kind", None)) is not None and dataclasses.is_dataclass(kind):  # `strict.ReadAs`
        return _fields(read, place)
    if typing.get_origin(kind) in (typing.Annotated, typing.Union, types.UnionType):
        return {name for each in typing.get_args(kind) for name in _fields(each, place)}
    if place and typing.get_origin(kind) is list:
        return _fields(typing.get_args(kind)[0], place[1:])
    hints: dict[str, object] = {}
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        hints = {name: field.annotation for name, field in kind.model_fields.items()}
    elif isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = {name: hint for name, hint in typing.get_type_hints(kind).items() if name in kind.__dataclass_fields__}
    return _fields(hints.get(str(place[0])), place[1:]) if place else set(hints)
