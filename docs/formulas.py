"""Python-Markdown's extension that typesets formulas when the site is built (zensical.toml): MathML, no script, no network.

An indented block that is a formula is set on its own, on pages and in docstrings; `$ … $` is set within a line. Any other
indented block stays code.
"""

import re
from typing import Any  # Markdown has no types
from xml.etree.ElementTree import Element, SubElement

import mathml
from markdown import Extension, Markdown
from markdown.blockprocessors import BlockProcessor
from markdown.inlinepatterns import InlineProcessor


class Inline(InlineProcessor):
    """`$ … $`."""

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:
        return self.md.htmlStash.store(mathml.inline(m[1])), m.start(0), m.end(0)


class Block(BlockProcessor):
    """An indented block that is a formula."""

    def test(self, parent: Element, block: str) -> bool:
        return block.startswith("    ") and mathml.is_formula(self.lines(block))

    def lines(self, block: str) -> list[str]:
        return [line[4:] for line in block.splitlines() if line.startswith("    ") and line.strip()]

    def run(self, parent: Element, blocks: list[str]) -> None:
        text, rest = self.detab(blocks.pop(0))
        SubElement(parent, "p").text = self.parser.md.htmlStash.store(mathml.block(text.splitlines()))
        if rest:
            blocks.insert(0, rest)


class Formulas(Extension):
    """Both kinds, before Markdown reads their stars and underscores."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.inlinePatterns.register(Inline(r"(?<![\\\w$])\$(?=\S)([^$]+?)(?<=\S)\$(?![\w$])", md), "formula", 185)
        md.parser.blockprocessors.register(Block(md.parser), "formula", 85)


def makeExtension(**settings: Any) -> Formulas:
    """What Markdown calls."""
    return Formulas(**settings)
