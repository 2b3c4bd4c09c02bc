"""What numbers depend on, as a hash: a module's own file and every file of both packages that it reaches by imports.

Rooms import their public names when first used; where a room has a stub (`__init__.pyi`), the stub says which module a name
comes from.
"""

import ast
import functools
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import multiref
import multiref_lab

_ROOTS = {package.__name__: Path(str(package.__file__)).parent for package in (multiref, multiref_lab)}


@functools.cache
def fingerprint(module: str) -> str:
    """A hash of every source file that a module reaches."""
    digest = hashlib.sha256()
    for file in sorted(dependencies(module), key=_name):
        digest.update(_name(file).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def dependencies(module: str) -> frozenset[Path]:
    """Files of both packages that a module reaches by imports, and its own, wherever that is."""
    found: set[Path] = set()
    waiting = list(_behind(module)) if module.split(".")[0] in _ROOTS else [Path(str(sys.modules[module].__file__))]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += _imports(file)
    return frozenset(found)


def _name(file: Path) -> str:
    """A file's place below its package, the same on every machine."""
    return next((f"{name}/{file.relative_to(root)}" for name, root in _ROOTS.items() if file.is_relative_to(root)), file.name)


def _behind(name: str) -> Iterator[Path]:
    """The file of the longest module that a dotted name begins with, and the file that a lazy room's stub says the name comes
    from."""
    package, *rest = name.split(".")
    folder = _ROOTS[package]
    while rest and (folder / rest[0] / "__init__.py").is_file():
        folder /= rest.pop(0)
    if rest and (file := folder / f"{rest[0]}.py").is_file():
        yield file
        return
    yield folder / "__init__.py"
    stub = folder / "__init__.pyi"
    if rest and stub.is_file() and (home := _bound(stub).get(rest[0], name)) != name:
        yield from _behind(".".join([home, *rest[1:]]))


@functools.cache
def _bound(file: Path) -> dict[str, str]:
    """{name in the file: dotted name} of all that its import statements bind."""
    found: dict[str, str] = {}
    for node in _nodes(file):
        if isinstance(node, ast.Import):
            found |= {alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: f"{_module(node, file)}.{alias.name}" for alias in node.names}
    return {bound: name for bound, name in found.items() if name.split(".")[0] in _ROOTS}


def _module(node: ast.ImportFrom, file: Path) -> str:
    """The absolute name of the module that a statement imports from."""
    if not node.level:
        return node.module or ""
    package = _name(file).split("/")[: -node.level]
    return ".".join([*package, node.module] if node.module else package)


@functools.cache
def _imports(file: Path) -> tuple[Path, ...]:
    bound = _bound(file)
    names = set(bound.values())
    for node in _nodes(file):  # what is used of an imported room: `mr.exact.solve`
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.insert(0, node.attr)
            node = node.value
        if parts and isinstance(node, ast.Name) and node.id in bound:
            names.add(".".join([bound[node.id], *parts]))
    return tuple(dict.fromkeys(path for name in sorted(names) for path in _behind(name)))


@functools.cache
def _nodes(file: Path) -> tuple[ast.AST, ...]:
    """What imports, and what is used of something."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return tuple(node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom, ast.Attribute)))
