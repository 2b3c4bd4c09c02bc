"""What a verdict depends on, as a hash: the claim's own file and every file of this package that it imports, directly or not."""

from __future__ import annotations

import ast
import functools
import hashlib
from pathlib import Path

import multiref
import multiref_lab
from multiref_lab.claim import Claim

__all__ = ["dependencies", "fingerprint"]

_ROOTS = {package.__name__: Path(str(package.__file__)).parent for package in (multiref, multiref_lab)}


def fingerprint(claim: Claim) -> str:
    """A hash of every source file that this claim's measurement can reach."""
    digest = hashlib.sha256()
    for file in sorted(dependencies(claim.measure.__module__), key=_name):
        digest.update(_name(file).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def dependencies(module: str) -> frozenset[Path]:
    """Files of both packages that a module reaches by its import statements, its own included."""
    found: set[Path] = set()
    waiting = [_file(module)]
    while waiting:
        file = waiting.pop()
        if file is not None and file not in found:
            found.add(file)
            waiting += _imports(file)
    return frozenset(found)


def _name(file: Path) -> str:
    """A file's place below its package, the same on every machine."""
    return next(f"{name}/{file.relative_to(root)}" for name, root in _ROOTS.items() if file.is_relative_to(root))


@functools.cache
def _imports(file: Path) -> tuple[Path | None, ...]:
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(_file(name) for name in names if name.split(".")[0] in _ROOTS)


def _file(module: str) -> Path | None:
    """The file of a module of these packages; None for a name that is none (a function, say)."""
    package, *rest = module.split(".")
    path = _ROOTS[package].joinpath(*rest)
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None
