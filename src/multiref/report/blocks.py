"""One self-contained HTML page out of small blocks: no script, no link, no file beside it; every text is escaped."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from multiref._files import write_whole as write_whole
from multiref._locks import write_alone as write_alone
from multiref._sealed import is_sealed as is_sealed
from multiref._sealed import seal as seal
from multiref.errors import ArgumentError
from multiref.report.shown import public

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup
    from matplotlib.figure import Figure


class Block(Protocol):
    """Whatever can stand on the page; `kind` is its branch in page.html.j2."""

    kind: ClassVar[str]


class Prose:
    """Paragraphs of plain text."""

    kind: ClassVar[str] = "prose"

    def __init__(self, *paragraphs: str) -> None:
        self.paragraphs = paragraphs


class Note:
    """What the reader must not miss: a difference within noise, a limit of the experiment."""

    kind: ClassVar[str] = "note"

    def __init__(self, *lines: str) -> None:
        self.lines = lines


@dataclass(frozen=True)
class Formula:
    """A formula in plain Unicode, set in a fixed-width face; lines stay lines."""

    kind: ClassVar[str] = "formula"
    text: str


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; the first column names the row. `quiet` rows (by position) are there for orientation.
    ArgumentError where a row has more or fewer cells than the header."""

    kind: ClassVar[str] = "table"
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    quiet: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.header):
                raise ArgumentError(f"table row {number} has {len(row)} cells; the header has {len(self.header)}")


@dataclass(frozen=True)
class Picture:
    """A figure: drawn into the page with its numbers in a table below, or the bytes of a PNG. `alt` says in words what it
    shows."""

    kind: ClassVar[str] = "picture"
    figure: Figure | bytes
    alt: str
    caption: str = ""

    def drawing(self) -> Markup:
        """As markup: inline SVG in the page's own colours, or an embedded PNG."""
        from markupsafe import Markup

        if isinstance(self.figure, bytes):
            source = base64.b64encode(self.figure).decode("ascii")
            return Markup('<img src="data:image/png;base64,{}" alt="">').format(source)
        from multiref.report.figures import inline_svg

        return Markup(inline_svg(self.figure))  # matplotlib escapes the texts that it draws

    def numbers(self) -> Table:
        """What the figure was drawn from; no row for a PNG."""
        if isinstance(self.figure, bytes):
            return Table((), ())
        from multiref.report.figures import read_numbers

        return Table(*read_numbers(self.figure))


@dataclass(frozen=True)
class Settings:
    """Names and values; nested mappings, and lists of them, become dotted names."""

    kind: ClassVar[str] = "settings"
    values: Mapping[str, object]

    def rows(self) -> list[tuple[str, str]]:
        """(dotted name, value)."""
        return [(key, str(value)) for key, value in dotted(self.values)]


@dataclass(frozen=True)
class Answer:
    """The first screen: one sentence that answers the page's question, with its uncertainty, and what must be seen with it."""

    kind: ClassVar[str] = "answer"
    sentence: str
    blocks: Sequence[Block] = field(default_factory=tuple)


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it, folded until it is opened or printed; nothing where nothing does."""

    kind: ClassVar[str] = "section"
    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)
    unfolded: bool = False


def page(title: str, *blocks: Block, subtitle: str = "") -> str:
    """The whole page as text: UTF-8, no script, a content policy that forbids every load from outside."""
    return _template().render(title=title, subtitle=subtitle, blocks=blocks)


@cache
def _template() -> Template:
    """Texts name no path of this machine and are escaped; `finalize` comes before jinja2's own escaping."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def finalize(value: object) -> object:
        return value if isinstance(value, Markup) else public(value)

    loader = PackageLoader("multiref.report", "")
    made = Environment(loader=loader, autoescape=True, finalize=finalize, undefined=StrictUndefined, trim_blocks=True)
    return made.get_template("page.html.j2")


def write_page(path: str | os.PathLike[str], title: str, *blocks: Block, subtitle: str = "") -> Path:
    """Write the page in one step (a reader sees the old page or the new one, never half).
    OutputError where it cannot be written."""
    return write_whole(path, page(title, *blocks, subtitle=subtitle))


def dotted(values: Mapping[Any, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """(a.0.c, value) of nested mappings, and of lists of them."""
    for key, value in values.items():
        if isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
            value = dict(enumerate(value))
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
