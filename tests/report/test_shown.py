"""What users' data says stays text, in a page, a card, a figure and a terminal; and no path of this machine gets out."""

import io
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from itertools import product
from typing import Any

import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from multiref.report import ModelCard, Note, Prose, Section, Settings, Table, page, print_table, public, visible
from multiref.report.figures import Curve, Plot, png, svg

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "![x](//evil.example/a.png)",
    "`a` ``b``",
    "a | b |\n| c",
    "# h\n\n---\n\n- item",
    "*b* _i_ ~~s~~ **B**",
    "1. one",
    "+ plus",
    "= rule",
    "https://evil.example/x",
    "www.evil.example",
    "someone@evil.example",
    "$x^2$",
    "&lt;b&gt; &#60;",
    "</table></style><b>",
    "```\n<b>\n```",
    "\\",
    "a\\|b",
    "<!-- -->",
    "[/b] [red]x :rocket:",
    "{{ 7*7 }} {% x %}",
    "\x1b[31mred\x07",
    "\u202egpj.exe",
    "\ud800",
    "\x00",
    "<div>\n\n<b>",
]
PATHS = [
    "/home/alice/data/pairs.jsonl",
    "/srv/my models/base",
    "C:\\Users\\alice\\base",
    "file:///home/alice/x",
    "see /home/alice/data/pairs.jsonl:12.",
    "('/home/alice/x', \"/home/alice/y\")",
    "path=/home/alice/x, and /home/alice/z/",
]


def card(text: str, **changes: object) -> str:
    one = dict.fromkeys(("title", "base_model", "objective", "formula", "data"), text)
    more = {"references": {text: (text, text)}, "metrics": {text: 1.0}, "settings": {"a": {text: [text]}}}
    fields: dict[str, Any] = {**one, **more, "beta": 0.1, "limits": [text], "checks": [text]}
    return ModelCard(**{**fields, **changes}).markdown()


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: dict[str, int] = {}
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1

    def handle_data(self, data: str) -> None:
        self.words += data


def blocks(text: str) -> str:
    table = Table((text, text), [(text, text)], caption=text)
    return page(text, Section(text, [Prose(text), Note(text), table, Settings({text: text})]), subtitle=text)


def rendered(markdown: str) -> Tags:
    return Tags(
        MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown.split("---\n", 2)[2])
    )


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_page_and_a_card_have_the_marks_that_plain_words_have(text: str) -> None:
    """The same elements, as often, as with a harmless word in the same places; in the card also as plain Markdown sees it."""
    assert Tags(blocks(text)).seen == Tags(blocks("word")).seen
    assert rendered(card(text)).seen == rendered(card("word")).seen
    for bare in ("\x1b", "\x00", "\u202e", "\ud800"):
        assert bare not in blocks(text) + card(text)


@pytest.mark.parametrize("text", ["https://evil.example/x", "http://evil.example", "see www.evil.example", "a@evil.example"])
def test_what_a_hub_would_make_a_link_of_is_broken_by_a_mark(text: str) -> None:
    outside_code = [line for line in card(text).split("\n") if line.startswith(("- ", "| ", "# "))]
    assert outside_code and not any(text in line for line in outside_code)


@pytest.mark.parametrize("text", PATHS, ids=range(len(PATHS)))
def test_no_path_of_this_machine(text: str) -> None:
    for made in (blocks(text), card(text)):
        for word in ("alice", "/home", "/srv", "my models", "Users"):
            assert word not in made
    assert "…/" in public(text)


@pytest.mark.parametrize(
    "text",
    ["log π / π_k", "β/(1−α)", "https://host:8000/v1/models", "openai/gsm8k", "runs/a/b.jsonl", "−|n − t|/t", "±3 / 4", "1/2"],
)
def test_what_only_looks_like_a_path_stays(text: str) -> None:
    assert public(text) == text


@pytest.mark.parametrize(("text", "kind"), product(["$\\frac$", "a$b", "x <&> -->", "\x1b\ud800"], [svg, png]), ids=range(8))
def test_a_figure_takes_any_name(text: str, kind: Any) -> None:
    """Well-formed XML; and no formula is looked for."""
    drawn = kind(Plot(text, text, [Curve(text, [1, 2], [1.0, 2.0])], log_x=True).figure())
    if kind is svg:
        ET.fromstring(drawn)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_terminal_shows_it_as_it_is(text: str) -> None:
    stream = io.StringIO()
    print_table(Table((text, "b"), [(text, text)], text), console=Console(file=stream, width=200, force_terminal=False))
    flat = stream.getvalue()
    assert visible(text).split("\n")[0].split()[0] in flat and "\x1b" not in flat and "\u202e" not in flat
    flat.encode()
