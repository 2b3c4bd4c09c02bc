"""The last stop of an experiment: one page out of the report's blocks, its figures, and its numbers as plain values beside
it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from multiref.report import Block, Picture, Section, Settings, versions, write_page, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def picture(figure: Figure, stem: Path, caption: str, alt: str = "") -> Picture:
    """Save a figure as <stem>.svg and <stem>.png, and show it. Errors: OutputError."""
    from multiref.report.figures import save

    save(figure, stem)
    return Picture(figure, alt or caption, caption)


def write(
    folder: Path,
    title: str,
    *blocks: Block,
    subtitle: str,
    settings: Mapping[str, object],
    results: Mapping[str, object] | None = None,
) -> Path:
    """report.html in the folder: the blocks, then what was asked for and the versions.
    With `results`, results.json holds all three.

    Errors: OutputError.
    """
    if results is not None:
        content = {"settings": settings, "versions": versions(), **results}
        write_whole(folder / "results.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    last = (Section("Settings", [Settings(settings)]), Section("Versions", [Settings(versions())]))
    return write_page(folder / "report.html", title, *blocks, *last, subtitle=subtitle)
