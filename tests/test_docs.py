"""What the documents promise about themselves: lines that fit a screen, links that lead somewhere,
tables that are the measurements'."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
TEXTS = [*PAGES, *sorted(ROOT.glob("recipes/*.yaml"))]


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_lines_are_of_at_most_128_characters(page):
    long = [n for n, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1) if len(line) > 128]
    assert not long, f"{page.name}: lines {long} are longer than 128 characters"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_that_exist(page):
    found = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [link for link in found if "://" not in link and not (page.parent / link).exists()]
    outside = [link for link in found if page.parent != ROOT and link.startswith("..")]  # the site has the pages of docs alone
    assert not missing + outside, f"{page.name}: {missing + outside}"


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_files_that_are_named_exist(page):
    """Of the maps: a file or folder in backticks is there."""
    named = re.findall(r"`((?:src|tests|docs|recipes|benchmarks)/[\w./-]*)`", (ROOT / page).read_text(encoding="utf-8"))
    assert len(named) > 5
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing, f"{page}: {missing}"


def test_each_walk_has_under_ten_stops():
    walks = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("## The walk of ")[1:]
    assert len(walks) == 2
    assert all(0 < len(re.findall(r"^\d+\. ", walk.split("\n## ")[0], re.MULTILINE)) < 10 for walk in walks)


def test_the_log_s_table_of_ratios_is_made_of_the_recorded_lines():
    made = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "table.py"], capture_output=True, text=True, check=True, timeout=60
    )
    assert made.stdout.strip() in (ROOT / "LOG.md").read_text(encoding="utf-8"), "python benchmarks/table.py --write"


@pytest.mark.parametrize(
    ("page", "claim"),
    [
        ("bilevel.md", "bilevel-misspecified"),
        ("which-online-algorithm.md", "bilevel-transformers"),
        ("which-online-algorithm.md", "bilevel-transformers-misspecified"),
    ],
)
def test_a_table_of_the_upper_objectives_is_the_ledger_s(page, claim):
    """The ledger is written anew with the code; a page that quotes it by hand says the same: of each β, the same numbers."""
    found = json.loads((ROOT / "docs" / "claims.json").read_text(encoding="utf-8"))["claims"][claim]["note"]
    lines = (ROOT / "docs" / page).read_text(encoding="utf-8").replace("**", "").splitlines()
    rows = [sorted(cell.strip() for cell in line.strip("|").split("|")) for line in lines if line.startswith("| ")]
    parts = re.findall(r"β = ([\d.]+): (.*?)(?:;|\.?$)", found)
    assert len(parts) == 3
    for beta, said in parts:
        wanted = sorted([beta, *re.findall(r"[a-z] (\d\.\d+)(?! ?\))", re.sub(r"\(.*?\)", "", said))])
        assert wanted in rows, f"{claim}, β = {beta}: {said}"


def test_every_page_is_in_the_site():
    """And the site lists no page that is not there; those of the API are made by `make docs`."""
    listed = re.findall(r'"([\w./-]+\.md)"', (ROOT / "zensical.toml").read_text(encoding="utf-8"))
    named = [name for name in listed if not name.startswith("api/")]
    assert sorted(named) == sorted(page.name for page in ROOT.glob("docs/*.md"))
    rooms = re.search(r"ROOMS = \((.*?)\)", (ROOT / "docs" / "make_api.py").read_text(encoding="utf-8"), re.DOTALL)
    assert rooms and sorted(re.findall(r'"([\w.]+)"', rooms[1])) == sorted(
        name[4:-3] for name in listed if name.startswith("api/")
    )
