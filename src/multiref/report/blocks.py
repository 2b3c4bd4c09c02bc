"""One self-contained HTML page out of small blocks: no script, no link, no file beside it; every text is escaped."""

import base64
import html
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from multiref._files import write_whole as write_whole
from multiref._locks import write_alone as write_alone
from multiref.errors import ArgumentError
from multiref.report.shown import public

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 80rem; padding: 1.2rem 1rem 4rem; background: #fff; color: #1b1f24;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .4rem 0 .2rem; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; padding-top: .7rem; border-top: 1px solid #d8dee4; }
p { max-width: 46rem; margin: .6rem 0; }
.subtitle { color: #57606a; margin-top: 0; }
.formula { display: block; overflow-x: auto; white-space: pre-wrap; background: #f6f8fa; border-left: 4px solid #0072b2;
  padding: .7rem .9rem; margin: .8rem 0; font: 15px/1.6 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
.note { background: #fff8e6; border-left: 4px solid #e69f00; padding: .6rem .9rem; margin: .8rem 0; max-width: 48rem; }
.note p { margin: .25rem 0; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: #57606a; padding: .2rem 0 .5rem; caption-side: top; }
th, td { padding: .36rem .55rem; border-bottom: 1px solid #e4e8ec; text-align: right; white-space: nowrap; }
thead th { border-bottom: 2px solid #8c959f; vertical-align: bottom; white-space: normal; min-width: 4.6rem; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
tbody th { font-weight: 600; }
tr.quiet td, tr.quiet th { color: #57606a; font-weight: 400; }
.settings td { white-space: pre-wrap; overflow-wrap: anywhere; }
.settings th, .settings td { text-align: left; vertical-align: top; position: static; }
figure { margin: 1.2rem 0; }
figure img { display: block; width: 100%; max-width: 46rem; height: auto; }
figcaption { color: #57606a; font-size: .92rem; max-width: 46rem; margin-top: .3rem; }
@media (max-width: 40rem) { body { font-size: 15px; padding: .8rem .8rem 3rem; }
  th:first-child, td:first-child { max-width: 9.5rem; white-space: normal; } }
"""


def escaped(text: object) -> str:
    """Text as HTML: nothing in it is markup, and it names no path of this machine."""
    return html.escape(public(text))


class Block(Protocol):
    """Whatever can stand on the page."""

    def html(self) -> str:
        """The block as HTML, everything of the user's escaped."""


class Prose:
    """Paragraphs of plain text."""

    def __init__(self, *paragraphs: str) -> None:
        self.paragraphs = paragraphs

    def html(self) -> str:
        """The block as HTML, everything of the user's escaped."""
        return "\n".join(f"<p>{escaped(text)}</p>" for text in self.paragraphs)


class Note:
    """What the reader must not miss: a difference within noise, a limit of the experiment."""

    def __init__(self, *lines: str) -> None:
        self.lines = lines

    def html(self) -> str:
        """The block as HTML, everything of the user's escaped."""
        return '<div class="note">' + "".join(f"<p>{escaped(line)}</p>" for line in self.lines) + "</div>"


@dataclass(frozen=True)
class Formula:
    """A formula in plain Unicode, set in a fixed-width face; lines stay lines."""

    text: str

    def html(self) -> str:
        """The block as HTML, everything of the user's escaped."""
        return f'<code class="formula">{escaped(self.text)}</code>'


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; the first column names the row. `quiet` rows (by position) are there for orientation."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    quiet: frozenset[int] = frozenset()

    def html(self) -> str:
        """The block as HTML, everything of the user's escaped."""
        for number, row in enumerate(self.rows):
            if len(row) != len(self.header):
                raise ArgumentError(f"table row {number} has {len(row)} cells; the header has {len(self.header)}")
        caption = f"<caption>{escaped(self.caption)}</caption>" if self.caption else ""
        head = "".join(f'<th scope="col">{escaped(cell)}</th>' for cell in self.header)
        body = "\n".join(self._row(number, row) for number, row in enumerate(self.rows))
        return f'<div class="scroll"><table>{caption}<thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'

    def _row(self, number: int, row: Sequence[str]) -> str:
        first = f'<th scope="row">{escaped(row[0])}</th>'
        rest = "".join(f"<td>{escaped(cell)}</td>" for cell in row[1:])
        kind = ' class="quiet"' if number in self.quiet else ""
        return f"<tr{kind}>{first}{rest}</tr>"


@dataclass(frozen=True)
class Picture:
    """A figure, embedded. `data` is the SVG or PNG itself; `alt` says in words what it shows."""

    data: bytes
    alt: str
    caption: str = ""

    def html(self) -> str:
        """The block as HTML, everything of the user's escaped."""
        kind = "image/png" if self.data.startswith(b"\x89PNG") else "image/svg+xml"
        source = f"data:{kind};base64,{base64.b64encode(self.data).decode('ascii')}"
        caption = f"<figcaption>{escaped(self.caption)}</figcaption>" if self.caption else ""
        return f'<figure><img src="{source}" alt="{escaped(self.alt)}">{caption}</figure>'


@dataclass(frozen=True)
class Settings:
    """Names and values; nested mappings become dotted names."""

    values: Mapping[str, object]

    def html(self) -> str:
        """The block as HTML, everything of the user's escaped."""
        rows = "".join(
            f'<tr><th scope="row">{escaped(key)}</th><td>{escaped(value)}</td></tr>' for key, value in _flat(self.values)
        )
        return f'<div class="scroll"><table class="settings"><tbody>{rows}</tbody></table></div>'


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)

    def html(self) -> str:
        """The block as HTML, everything of the user's escaped."""
        return f"<section><h2>{escaped(self.title)}</h2>\n" + "\n".join(block.html() for block in self.blocks) + "\n</section>"


def page(title: str, *blocks: Block, subtitle: str = "") -> str:
    """The whole page as text: UTF-8, no script, a content policy that forbids every load from outside."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    under = f'<p class="subtitle">{escaped(subtitle)}</p>' if subtitle else ""
    body = "\n".join(block.html() for block in blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n<h1>{escaped(title)}</h1>\n{under}\n{body}\n</main>\n</body>\n</html>\n"
    )


def write_page(path: str | os.PathLike[str], title: str, *blocks: Block, subtitle: str = "") -> Path:
    """Write the page in one step (a reader sees the old page or the new one, never half).
    OutputError where it cannot be written."""
    return write_whole(path, page(title, *blocks, subtitle=subtitle))


def _flat(values: Mapping[str, object], prefix: str = "") -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows
