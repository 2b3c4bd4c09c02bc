"""Every public name's example runs and shows what it says (docs/examples, which `make docs` puts below each docstring)."""

import re
import sys

import pytest

from tests import examples
from tests.test_blocks import ROOT, world  # noqa: F401  (a fixture)

sys.path.insert(0, str(ROOT / "docs"))

import make_api

LIGHT = {"exact", "pools", "divergences", "regularizers", "losses", "bounds", "bilevel", "errors"}  # no model is loaded


@pytest.mark.parametrize(
    "room", [pytest.param(room, marks=[] if room in LIGHT else pytest.mark.slow) for room in make_api.ROOMS]
)
@pytest.mark.filterwarnings("ignore")
def test_the_examples_of_a_room_run_and_show_what_comes_out(room, request, monkeypatch):
    if room not in LIGHT:
        monkeypatch.chdir(request.getfixturevalue("world"))
    monkeypatch.setattr("builtins.input", lambda question: "no")
    examples.run(room)


@pytest.mark.slow
def test_every_public_name_has_a_docstring_and_an_example(monkeypatch, tmp_path):
    monkeypatch.setattr(make_api, "FOLDER", tmp_path)
    assert [line for room in make_api.ROOMS for line in make_api.write_page(room)] == []


def test_a_name_without_an_example_or_docstring_is_found(monkeypatch, tmp_path):
    """Faults planted: a cell's head loses a name, a public function its docstring, another has a torn sentence."""
    monkeypatch.setattr(make_api, "FOLDER", tmp_path)
    setup, cells = make_api.cells("losses")
    assert [line for line in make_api.write_page("losses") if line] == []
    monkeypatch.setattr(make_api, "cells", lambda room: (setup, {"gone": ""} | {n: c for n, c in cells.items() if n != "ipo"}))
    monkeypatch.setattr("multiref.losses.hinge.__doc__", None)
    monkeypatch.setattr("multiref.losses.robust.__doc__", "A loss.\n\n    Errors: one for a number\n        that is none.\n")
    assert list(make_api.write_page("losses")) == [
        "no docstring: multiref.losses.hinge",
        "no example: multiref.losses.ipo",
        "an indented line behind one that begins with a word and a colon: multiref.losses.robust",
        "docs/examples/losses.py: gone is no public name",
    ]
    assert re.search(r"::: multiref.losses.ipo\n", (tmp_path / "losses.md").read_text("utf-8"))
