"""The page is whole, escaped, and needs nothing from outside itself. Read back with the standard HTML parser."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from multiref.errors import ArgumentError, OutputError
from multiref.report import Answer, Formula, Note, Picture, Prose, Section, Settings, Table, page, write_page
from multiref.report.figures import Curve, Plot, png
from multiref.report.terminal import print_table

VOID = {"meta", "img", "br", "link", "hr"}
LEAVES = {"path", "use", "rect", "circle", "line"}  # of SVG, closed in themselves
NASTY = """<script>alert("1")</script> & 'x' <img src=http://evil.example/x>"""


class Reader(HTMLParser):
    """Collects tags, attributes, text, table cells; notices a tag that is not closed in order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.rows: list[list[str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)
        if self.open and self.open[-1] in ("th", "td"):
            self.rows[-1][-1] += data


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def everything() -> str:
    figure = Plot("pairs", "loss", [Curve(NASTY, [1, 2], [1.0, 2.0])], log_x=False).figure()
    return page(
        NASTY,
        Answer(NASTY, [Prose(NASTY)]),
        Section(
            NASTY,
            [
                Prose(NASTY),
                Note(NASTY),
                Formula("J(π) = E[r] − β Σ KL(π‖π_k)  " + NASTY),
                Table(("method", NASTY), [(NASTY, "1 < 2")], caption=NASTY),
                Settings({"beta": 0.1, "nested": {"key": NASTY}}),
                Picture(figure, NASTY, NASTY),
                Picture(png(figure), "png", "a PNG"),
            ],
        ),
        subtitle=NASTY,
    )


def test_every_text_comes_back_as_it_went_in_and_nothing_becomes_markup() -> None:
    """Title, heading, subtitle, answer and its prose, section, prose, note, formula, head cell, cell, table caption, setting,
    figure caption; the legend of the drawing, and its row in the table of numbers, twice: seventeen places."""
    reader = read(everything())
    assert "".join(reader.text).count(NASTY) == 17
    assert not [tag for tag, _ in reader.tags if tag in ("script", "link", "iframe", "object")]
    assert [attrs["aria-label"] for tag, attrs in reader.tags if attrs.get("class") == "drawing"] == [NASTY, "png"]


def test_nothing_is_loaded_from_outside() -> None:
    """No attribute but a data: address, no url() or @import in the style; a drawing refers only to its own parts."""
    text = everything()
    reader = read(text)
    for tag, attrs in reader.tags:
        assert not {"srcset", "action", "onload", "onerror"} & attrs.keys()
        assert str(attrs.get("href", attrs.get("xlink:href", "#"))).startswith("#")
        if "src" in attrs:
            assert tag == "img" and str(attrs["src"]).startswith("data:image/png;base64,iVBOR")
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text)) and "@import" not in text
    named = re.findall(r' id="([^"]*)"', text)
    assert {
        target[1:] for target in re.findall(r'xlink:href="([^"]*)"|url\((#[^)]*)\)', text) for target in target if target
    } <= {*named}
    policy = [a["content"] for t, a in reader.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_the_answer_stands_open_and_sections_are_folded() -> None:
    """What stands before the first fold is the answer alone; every section and every table of numbers is folded."""
    rest = [Section("Rest", [Prose("more")]), Section("Nothing"), Section("Open", [Prose("x")], unfolded=True)]
    text = page("t", Answer("Yes, by 3 ± 1."), *rest)
    before, *folds = text.split("<details")
    assert "Yes, by 3 ± 1." in before and "more" not in before
    assert [" open>" in fold.split("<summary>")[0] for fold in folds] == [False, True] and "Nothing" not in text


def test_a_drawing_takes_the_page_s_colours_and_its_letters_are_text() -> None:
    """So that it can be read in the dark, searched and copied."""
    figure = Plot("pairs", "loss", [Curve("a curve", [1, 2], [1.0, 2.0])], log_x=False).figure()
    drawn = str(Picture(figure, "").drawing())
    assert drawn.startswith("<svg") and ">a curve</text>" in drawn and ">pairs</text>" in drawn
    assert "var(--ink)" in drawn and "var(--paper)" in drawn and not re.search("#1b1f24|#ffffff|#000000", drawn)


def test_a_table_keeps_its_cells_in_place() -> None:
    table = Table(("method", "J", "KL"), [("exact", "1.0", "0.1"), ("base", "0.2", "2")], quiet=frozenset({1}))
    reader = read(page("t", table))
    assert reader.rows == [["method", "J", "KL"], ["exact", "1.0", "0.1"], ["base", "0.2", "2"]]
    assert [attrs.get("class") for tag, attrs in reader.tags if tag == "tr"] == [None, None, "quiet"]
    with pytest.raises(ArgumentError, match="row 0 has 1 cells"):
        Table(("a", "b"), [("x",)])


def test_bars_begin_at_the_left(capsys: pytest.CaptureFixture[str]) -> None:
    """A column without a head is drawn: "██" and "████" start at one place, though numbers end at one."""
    table = Table(("tokens", "pairs", ""), [("1", "2", "██"), ("2", "10", "████")])
    cells = [attrs.get("class") for tag, attrs in read(page("t", table)).tags if tag == "td"]
    assert cells == [None, "bar", None, "bar"]
    print_table(table, console=Console(width=80))
    short, long = (line for line in capsys.readouterr().out.splitlines() if "█" in line)
    assert short.index("█") == long.index("█")


def test_settings_are_flattened_by_dots() -> None:
    values = {"a": {"b": {"c": 1}}, "d": "e", "f": [{"g": 2}, "h"], "i": [3]}
    expected = [["a.b.c", "1"], ["d", "e"], ["f.0.g", "2"], ["f.1", "h"], ["i", "[3]"]]
    assert read(page("t", Settings(values))).rows == expected


def test_writing_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old page survives a failure in the middle, and no temporary file is left."""
    target = tmp_path / "deep" / "report.html"
    write_page(target, "first", Prose("one"))
    before = target.read_text(encoding="utf-8")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OutputError, match="No space left"):
        write_page(target, "second", Prose("two"))
    assert target.read_text(encoding="utf-8") == before
    assert [path.name for path in target.parent.iterdir()] == ["report.html"]


def test_an_unwritable_folder_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"cannot write .*report\.html"):
        write_page(tmp_path / "file" / "report.html", "t")
