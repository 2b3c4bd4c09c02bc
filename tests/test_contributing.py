"""The three changes that CONTRIBUTING.md shows are whole, short, and do what they say."""

import json
import re
from pathlib import Path

import pytest

import multiref as mr
import multiref_lab as lab
from multiref.runs.document import Document
from multiref.runs.execute import execute
from multiref.training.online import penalties
from multiref_lab.claim import Claim, Effort
from tests.training.online.test_fixed_points import WORLD, largest_update

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")


def shown(title):
    """The code and the lines of diff under a title."""
    section = TEXT.split(f"## {title}\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return code, "".join(re.findall(r"```diff\n(.*?)```", section, re.DOTALL)).splitlines()


def run(code, **names):
    exec(compile(code, "CONTRIBUTING.md", "exec"), names)
    return names


@pytest.mark.parametrize("title", ["Adding a task", "Adding a claim", "Adding a penalty"])
def test_each_is_under_thirty_lines_of_diff(title):
    code, more = shown(title)
    assert len(code.splitlines()) + len(more) < 30


def test_the_task_makes_a_model_that_is_the_product(tiny_folder, tmp_path):
    kind = run(shown("Adding a task")[0])["ProductRun"]
    references = [{"name": name, "model": str(tiny_folder)} for name in ("a", "b")]
    config = {
        "task": "product",
        "model": str(tiny_folder),
        "references": references,
        "beta": 1.0,
        "output": str(tmp_path / "run"),
    }
    folder = execute(Document(config, "run.yaml").validate(kind), say=lambda text: None)
    assert json.loads((folder / "model" / "config.json").read_text())["model_type"] == mr.models.ProductConfig.model_type
    assert (folder / "report.html").exists()


def test_the_claim_is_verified():
    (claim,) = (value for value in run(shown("Adding a claim")[0]).values() if isinstance(value, Claim))
    assert claim.name not in {each.name for each in lab.claims()}
    assert claim.rule(claim.measure(Effort())) == "verified"


def test_the_penalty_stands_still_at_its_fixed_point():
    rule = run(shown("Adding a penalty")[0], **vars(penalties))["K1Loss"]()
    end = rule.fixed_point(WORLD.reward, WORLD.refs, mr.ReverseKL(), beta=WORLD.beta)
    assert largest_update(rule, end, WORLD) < 1e-14
    assert largest_update(rule, [level[0] for level in WORLD.refs], WORLD) > 1e-3
