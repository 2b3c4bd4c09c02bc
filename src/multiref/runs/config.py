"""One YAML file of constructor arguments → a checked settings object; every mistake names the file and the key."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from multiref.errors import ConfigError

__all__ = ["build", "nearest", "override", "read_yaml"]


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping that a YAML file holds. Plain data only (`safe_load`): a file cannot run anything."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; expected a YAML file in UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; expected a YAML file of settings.") from None
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or "cannot be read"
        raise ConfigError(f"{where}: {problem}; expected YAML of plain values.") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: found {type(value).__name__}, expected keys and values such as `beta: 0.1`.")
    return _copied(value)


def override(config: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """`a.b=c` laid over a configuration; c is YAML, a number in the path is a place in a list."""
    result = _copied(config)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {assignment}: expected key=value, such as --set training.learning_rate=1e-5.")
        try:
            value = _copied(yaml.safe_load(text))
        except yaml.YAMLError:
            raise ConfigError(f"--set {assignment}: the value is not YAML; put quotes around it.") from None
        _put(result, key.split("."), value, assignment)
    return result


def build(kind: type[Any], values: Any, where: str) -> Any:
    """A dataclass from a mapping: unknown keys, missing ones and values of another kind are refused by name."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: found {_shown(values)}, expected keys and values.")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in values:
        if key not in fields:
            raise ConfigError(f"{_at(where, key)}: unknown key{nearest(str(key), fields)}.")
    hints = typing.get_type_hints(kind)
    arguments = {key: _typed(value, hints[key], _at(where, key)) for key, value in values.items()}
    for name, field in fields.items():
        if name not in arguments and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{_at(where, name)}: missing; expected {_described(hints[name])}.")
    return kind(**arguments)


def nearest(word: str, known: typing.Iterable[str]) -> str:
    """ "; did you mean …?" for the known word that is closest, or the list where none is."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean `{close[0]}`?"
    return f"; known are {', '.join(names)}" if len(names) <= 40 else ""


def _typed(value: Any, hint: Any, where: str) -> Any:
    if hint is Any:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        options = [option for option in arguments if option is not type(None)]
        for option in options:
            if _fits(value, option):
                return _typed(value, option, where)
        raise ConfigError(f"{where}: found {_shown(value)}, expected {_described(hint)}.")
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, where)
    if origin is list:
        if not isinstance(value, list):
            raise ConfigError(f"{where}: found {_shown(value)}, expected a list.")
        return [_typed(item, arguments[0], f"{where}[{number}]") for number, item in enumerate(value)]
    if not _fits(value, hint):
        raise ConfigError(f"{where}: found {_shown(value)}, expected {_described(hint)}.")
    return float(value) if hint is float else value


def _fits(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint) or hint
    if dataclasses.is_dataclass(hint):
        return isinstance(value, Mapping)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin)


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-5 as text; we read it as the number that everybody means."""
    if isinstance(value, str) and value[:1] in "+-.0123456789" and "e" in value.lower():
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _put(config: Any, path: list[str], value: Any, assignment: str) -> None:
    for depth, part in enumerate(path[:-1]):
        child = _child(config, part, assignment, path[: depth + 1])
        if not isinstance(child, dict | list):
            child = {}
            _store(config, part, child, assignment)
        config = child
    _store(config, path[-1], value, assignment)


def _child(config: Any, part: str, assignment: str, path: list[str]) -> Any:
    if isinstance(config, list):
        return config[_place(config, part, assignment)]
    return config.setdefault(part, {})


def _store(config: Any, part: str, value: Any, assignment: str) -> None:
    if isinstance(config, list):
        config[_place(config, part, assignment)] = value
    else:
        config[part] = value


def _place(items: list[Any], part: str, assignment: str) -> int:
    if not part.isdigit() or int(part) >= len(items):
        raise ConfigError(
            f"--set {assignment}: {part!r} is no place in a list of {len(items)}; expected 0 to {len(items) - 1}."
        )
    return int(part)


def _copied(value: Any) -> Any:
    """A deep copy in which numbers are numbers."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else _number(value)


def _at(where: str, key: Any) -> str:
    return f"{where}: {key}" if ": " not in where else f"{where}.{key}"


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 40 else text[:37] + '...'} ({type(value).__name__})"


def _described(hint: Any) -> str:
    names = {str: "text", float: "a number", int: "a whole number", bool: "true or false", dict: "keys and values"}
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_described(option) for option in options)
    if dataclasses.is_dataclass(hint):
        return "keys and values (" + ", ".join(field.name for field in dataclasses.fields(typing.cast(type, hint))) + ")"
    if typing.get_origin(hint) is list:
        return "a list"
    return names.get(typing.get_origin(hint) or hint, getattr(hint, "__name__", str(hint)))
