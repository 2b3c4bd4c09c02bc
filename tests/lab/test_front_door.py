"""The laboratory stands on public names of the library's rooms, and the library does not know that there is a laboratory."""

import ast
import importlib
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
LABORATORY = sorted((SOURCE / "multiref_lab").rglob("*.py"))


def is_room(module: str) -> bool:
    """`multiref`, a folder directly below it, a module directly below it, or a room within a room that says what is public."""
    place = SOURCE.joinpath(*module.split("."))
    return (place / "__init__.py").is_file() or (place.with_suffix(".py").is_file() and module.count(".") == 1)


def violations(file: Path) -> list[str]:
    """Imports of what no room offers: a private module, a module inside a room, a name that is not in `__all__`."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.startswith("multiref.") and not is_room(a.name)]
        if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] != "multiref":
            continue
        module = str(node.module)
        if not is_room(module) or "._" in module:
            found.append(module)
            continue
        public = set(importlib.import_module(module).__all__)
        rooms = {alias.name for alias in node.names if module == "multiref" and is_room(f"multiref.{alias.name}")}
        found += [f"{module}.{alias.name}" for alias in node.names if alias.name not in public | rooms]
    return found


@pytest.mark.parametrize("file", LABORATORY, ids=lambda file: str(file.relative_to(SOURCE)))
def test_the_laboratory_uses_what_rooms_offer(file):
    assert violations(file) == []


def test_a_private_name_would_be_found(tmp_path):
    (tmp_path / "file.py").write_text(
        "from multiref._files import write_whole\nfrom multiref.training.online.loop import OnlineTrainer\n"
        "from multiref.report import write_whole, no_such_name\nimport multiref.exact._solve\nfrom multiref import exact\n"
    )
    assert violations(tmp_path / "file.py") == [
        "multiref._files",
        "multiref.training.online.loop",
        "multiref.report.no_such_name",
        "multiref.exact._solve",
    ]


def test_the_library_does_not_name_the_laboratory():
    """But for the messages that say where the names of 0.1 went."""
    naming = [
        file
        for file in (SOURCE / "multiref").rglob("*.py*")
        if file.suffix in (".py", ".pyi") and "multiref_lab" in file.read_text(encoding="utf-8")
    ]
    assert [file.name for file in naming] == ["_moved.py"]
