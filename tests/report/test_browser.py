"""Five pages in a real browser: nothing on the console, no request to anywhere, nothing wider than a phone, letters that can be
read in the dark."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from multiref.data import Selection
from multiref.evaluation import PassAtK
from multiref.evaluation.inspection import inspect
from multiref.evaluation.inspection import write_page as write_inspection
from multiref.models import ModelSpec
from multiref.report import Answer, Settings, Table, write_page
from multiref.runs.base import BaseRun, Facts
from multiref.runs.data_look import look_at_data
from multiref.runs.evaluation_page import write_evaluation_page
from multiref.runs.page import write_report
from tests.evaluation.worlds import world
from tests.report.chromium import PROGRAM, Browser, browser
from tests.report.test_page import everything

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")
# A colour against its background, as WCAG 2 counts it.
CONTRAST = """(() => {
  const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const against = l => (Math.max(l, paper) + 0.05) / (Math.min(l, paper) + 0.05);
  return Math.min(...[...document.querySelectorAll('p, td, th, figcaption, caption, text, summary')]
    .map(e => { const s = getComputedStyle(e); return against(light(e.tagName == 'text' ? s.fill : s.color)) })) })()"""

# How far to the right the text of a table's caption reaches.
CAPTIONS = """(() => { const range = document.createRange(); return Math.max(0, ...[...document.querySelectorAll('caption')]
  .map(e => { range.selectNodeContents(e); return range.getBoundingClientRect().right })) })()"""


class Plain(BaseRun):
    """A run that has no more than a name."""

    task: str = "preference"

    def ready(self):  # type: ignore[no-untyped-def]
        raise NotImplementedError


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run's page, an inspection, a look at data, a comparison of policies, and every block with hostile text."""
    folder = tmp_path_factory.mktemp("pages")
    found = {name: folder / f"{name}.html" for name in ("run", "inspect", "data", "evaluate", "hostile")}
    lines = [{"step": n, "loss": 0.7 - n / 100, "eval_rewards/accuracies": 0.6} for n in range(20)]
    facts = Facts("a model aligned against two", "base", "DPO", "−log σ(β Δ)", "pairs.jsonl", 0.1, curves={"loss": ("loss",)})
    write_report(found["run"], Plain(model=ModelSpec("base"), output="run", title="x" * 90), facts, lines, [{"training": 3.0}])
    pairs, scores, *_ = world("two", 0, count=60)
    write_inspection(found["inspect"], inspect(pairs, scores, resamples=2), data="pairs", store="scores")
    look = look_at_data([{"prompt": "p" * 300, "chosen": f"c{n}", "rejected": "r " * n} for n in range(1, 9)], Selection())
    write_page(found["data"], "What it is", *look.blocks())
    rewards = {name: {"total": torch.rand(6, 4, generator=torch.Generator().manual_seed(n))} for n, name in enumerate("abc")}
    settings = {"samples": 4, "temperature": 1.0}
    write_evaluation_page(found["evaluate"], PassAtK(rewards, {}, settings).summary([1], resamples=200))
    found["hostile"].write_text(everything(), encoding="utf-8")
    return found


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.mark.parametrize("name", ["run", "inspect", "data", "evaluate", "hostile"])
def test_a_page_is_whole_on_a_phone_silent_and_readable_light_and_dark(name: str, pages: dict[str, Path], tab: Browser) -> None:
    for dark in (False, True):
        tab.open(pages[name], width=375, dark=dark)
        tab.value("document.querySelectorAll('details').forEach(each => each.open = true)")
        assert tab.value("document.documentElement.scrollWidth") <= 375
        assert tab.value(CAPTIONS) <= 375, "a caption is cut where its table is"
        assert tab.value(CONTRAST) >= 4.5
        assert tab.complaints() == []


def test_the_browser_would_have_noticed(tmp_path: Path, tab: Browser) -> None:
    """A page that is too wide, loads from elsewhere and shows grey on grey."""
    bad = tmp_path / "bad.html"
    write_page(bad, "t", Answer("x"), Table(("a",), [("y" * 300,)]), Settings({}))
    text = bad.read_text().replace(".scroll { overflow-x: auto;", ".scroll { color: #bbb;")
    bad.write_text(text.replace("</main>", '<img src="http://127.0.0.1:9/x.png"></main>'))
    tab.open(bad, width=375)
    assert tab.value("document.documentElement.scrollWidth") > 375
    assert tab.value(CONTRAST) < 4.5
    assert any("127.0.0.1" in line for line in tab.complaints())
