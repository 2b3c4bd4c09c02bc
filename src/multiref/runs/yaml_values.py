"""YAML text → plain values and the line of every key.
Nothing is executed, and nothing is read twice: a repeated key is an error."""

import math
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import yaml

from multiref.errors import ConfigError

Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]
Place = tuple[str | int, ...]

DEPTH = 32
DIGITS = 300
SHORT = "\0"  # the key, which no file can hold, of a text that is short for one of its keys: which, the model knows
_READ = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float")}
_ODD = re.compile(r"[-+]?(0[0-9_]+|[0-9_]+(:[0-9_]+)+(\.[0-9_]*)?)")  # octal, and numbers of base 60
_TEXT = {
    "tag:yaml.org,2002:str",
    "tag:yaml.org,2002:timestamp",
    "tag:yaml.org,2002:value",
}  # a date is the text that it looks like


class PlainLoader(yaml.SafeLoader):
    """Text as it stands: no alias, of which ten lines can make a billion values, and nothing very deep."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        at: Any = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, f"found the alias *{event.anchor}; write out what it stands for", at)
        if self.depth >= DEPTH:
            raise yaml.composer.ComposerError(None, None, f"found lists and keys more than {DEPTH} deep", at)
        self.depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


def parse(text: str, source: str) -> tuple[Plain, dict[Place, int]]:
    """(the value, the line of each key by its place). ConfigError with source and line for what is no YAML of plain values."""
    lines: dict[Place, int] = {}
    try:
        loader = PlainLoader(text)
        try:
            node = loader.get_single_node()
            return (None if node is None else _value(loader, node, (), lines, source)), lines
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}" if mark else source
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
        raise ConfigError(f"{where}: {problem}; expected one YAML document of plain values.") from error


def at_home(value: Any) -> Any:
    """The value with the home folder for `~` where a text begins with it."""
    if isinstance(value, dict):
        return {key: at_home(each) for key, each in value.items()}
    if isinstance(value, list):
        return [at_home(each) for each in value]
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~") else value


def kind_of(value: Plain) -> str:
    """The kind of a value, as a person calls it."""
    if value is None:
        return "nothing"
    names = {bool: "true or false", int: "number", float: "number", str: "text", list: "list", dict: "keys and values"}
    return names[type(value)]


def _value(loader: yaml.SafeLoader, node: yaml.Node, place: Place, lines: dict[Place, int], source: str) -> Plain:
    if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
        found: dict[str, Plain] = {}
        for key, value in _pairs(node, source):
            here = (*place, key.value)
            lines[here] = key.start_mark.line + 1
            found[key.value] = _value(loader, value, here, lines, source)
        return found
    if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
        items: list[Plain] = []
        for number, item in enumerate(node.value):
            lines[*place, number] = item.start_mark.line + 1
            items.append(_value(loader, item, (*place, number), lines, source))
        return items
    if isinstance(node, yaml.ScalarNode) and node.tag in _READ:
        return _finite(loader, node, source)
    if isinstance(node, yaml.ScalarNode) and node.tag in _TEXT:
        return _number(node.value) if getattr(node, "style", None) is None else str(node.value)
    raise ConfigError(
        f"{source}:{node.start_mark.line + 1}: found {node.tag[:60]}; expected text, numbers, lists, keys and values."
    )


def _finite(loader: yaml.SafeLoader, node: yaml.Node, source: str) -> Plain:
    """A number that a setting can have, true, false or nothing."""
    if _ODD.fullmatch(node.value[:DIGITS]):
        raise ConfigError(
            f"{source}:{node.start_mark.line + 1}: {node.value[:40]}, which YAML reads as a number of base 8 or 60; write the "
            "number that is meant, or put quotes around a text."
        )
    with suppress(ValueError, OverflowError, KeyError):  # 0b, more digits than a float holds, !!bool of what is none
        plain: Any = loader.construct_object(node) if len(node.value) <= DIGITS else math.nan
        if plain is None or math.isfinite(plain):
            return plain  # type: ignore[no-any-return]
    raise ConfigError(f"{source}:{node.start_mark.line + 1}: found {node.value[:40]}, expected a finite number.")


def _pairs(node: yaml.MappingNode, source: str) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
    """Keys and values."""
    first: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{source}:{line}: a key that is no text; expected keys such as `beta`.")
        if key.value in first:
            raise ConfigError(
                f"{source}:{line}: {key.value}: a second time, first in line {first[key.value]}; keep one of the two."
            )
        first[key.value] = line
        yield key, value


def _number(text: str) -> str | float:
    """YAML 1.1 reads 1e-5 and -.5 as text; we read them as the numbers that everybody means."""
    if text[:1] in tuple("+-.0123456789") and ("e" in text.lower() or text[:2] in ("-.", "+.")):
        with suppress(ValueError):
            return value if math.isfinite(value := float(text)) else text
    return text
