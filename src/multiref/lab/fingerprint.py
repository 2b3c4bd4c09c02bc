"""What a verdict depends on, as a hash: the claim's own file and every file of this package that it imports, directly or not."""

from __future__ import annotations

import ast
import functools
import hashlib
from pathlib import Path

import multiref
from multiref.lab.claim import Claim

__all__ = ["dependencies", "fingerprint"]

_ROOT = Path(multiref.__file__).parent


def fingerprint(claim: Claim) -> str:
    """A hash of every source file that this claim's measurement can reach."""
    digest = hashlib.sha256()
    for file in sorted(dependencies(claim.measure.__module__)):
        digest.update(str(file.relative_to(_ROOT)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def dependencies(module: str) -> frozenset[Path]:
    """Files of this package that a module reaches by its import statements, its own included."""
    found: set[Path] = set()
    waiting = [_file(module)]
    while waiting:
        file = waiting.pop()
        if file is not None and file not in found:
            found.add(file)
            waiting += _imports(file)
    return frozenset(found)


@functools.cache
def _imports(file: Path) -> tuple[Path | None, ...]:
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(_file(name) for name in names if name.startswith("multiref."))


def _file(module: str) -> Path | None:
    """The file of a module of this package; None for a name that is none (a function, say)."""
    path = _ROOT.joinpath(*module.split(".")[1:])
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None
