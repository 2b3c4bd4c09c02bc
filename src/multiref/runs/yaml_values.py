"""YAML text → plain values and the line of every key.
Nothing is executed, and nothing is read twice: a repeated key is an error."""

from collections.abc import Iterator

import yaml

from multiref.errors import ConfigError

Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]
Place = tuple[str | int, ...]

_MERGE = "tag:yaml.org,2002:merge"
_READ = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float")}
_TEXT = {
    "tag:yaml.org,2002:str",
    "tag:yaml.org,2002:timestamp",
    "tag:yaml.org,2002:value",
}  # a date is the text that it looks like


def parse(text: str, source: str) -> tuple[Plain, dict[Place, int]]:
    """(the value, the line of each key by its place). ConfigError with source and line for what is no YAML of plain values."""
    loader = yaml.SafeLoader(text)
    lines: dict[Place, int] = {}
    try:
        node = loader.get_single_node()
        return (None if node is None else _value(loader, node, (), lines, source, ())), lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}" if mark else source
        problem = getattr(error, "problem", None) or "cannot be read"
        raise ConfigError(f"{where}: {problem}; expected YAML of plain values.") from None
    finally:
        loader.dispose()


def kind_of(value: Plain) -> str:
    """The kind of a value, as a person calls it."""
    if value is None:
        return "nothing"
    names = {bool: "true or false", int: "number", float: "number", str: "text", list: "list", dict: "keys and values"}
    return names[type(value)]


def _value(
    loader: yaml.SafeLoader, node: yaml.Node, place: Place, lines: dict[Place, int], source: str, around: tuple[int, ...]
) -> Plain:
    if id(node) in around:
        raise ConfigError(f"{source}:{node.start_mark.line + 1}: an alias of what it stands in; expected plain values.")
    around = (*around, id(node))
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Plain] = {}
        for key, value in _pairs(loader, node, source):
            here = (*place, key.value)
            lines[here] = key.start_mark.line + 1
            found[key.value] = _value(loader, value, here, lines, source, around)
        return found
    if isinstance(node, yaml.SequenceNode):
        items: list[Plain] = []
        for number, item in enumerate(node.value):
            lines[*place, number] = item.start_mark.line + 1
            items.append(_value(loader, item, (*place, number), lines, source, around))
        return items
    if node.tag in _READ:
        plain: Plain = loader.construct_object(node)
        return plain
    if node.tag in _TEXT:
        return _number(node.value) if getattr(node, "style", None) is None else str(node.value)
    raise ConfigError(f"{source}:{node.start_mark.line + 1}: found {node.tag}; expected text, numbers, lists, keys and values.")


def _pairs(loader: yaml.SafeLoader, node: yaml.MappingNode, source: str) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
    """Keys and values, those that are merged in (`<<`) under the mapping's own."""
    first: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{source}:{line}: a key that is no text; expected keys such as `beta`.")
        if key.value in first and key.tag != _MERGE:
            raise ConfigError(
                f"{source}:{line}: {key.value}: a second time, first in line {first[key.value]}; keep one of the two."
            )
        first[key.value] = line
    loader.flatten_mapping(node)
    yield from node.value


def _number(text: str) -> str | float:
    """YAML 1.1 reads 1e-5 as text; we read it as the number that everybody means."""
    if text[:1] in tuple("+-.0123456789") and "e" in text.lower():
        try:
            return float(text)
        except ValueError:
            return text
    return text
