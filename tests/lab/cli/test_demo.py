"""`multiref demo` on the command line: what it passes on, what it prints, how it refuses."""

import dataclasses
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from multiref.cli import app
from tests.lab.conftest import TINY


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--quick` as a miniature, so that a test can afford it."""
    from multiref_lab.demo import settings
    from multiref_lab.demo.preferences import PairLaw

    quick = dataclasses.replace(
        settings.QUICK,
        law=PairLaw(prompts=8, pairs_per_prompt=1),
        pairs_per_step=8,
        held_out_prompts=4,
        curve_points=1,
        world=TINY,
    )
    monkeypatch.setattr(settings, "QUICK", quick)


@pytest.mark.slow
def test_demo_prints_its_tables_and_says_where_the_report_is(small: None, tmp_path: Path) -> None:
    arguments = ["demo", "--quick", "--seeds", "1", "--output", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "220"})
    assert result.exit_code == 0, result.output
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "multiref demo --quick" in page
    for needed in (
        "KL(π‖π*)",
        "regret",
        "MRPO's pool, both",
        "π* (exact optimum)",
        "With one seed nothing can be told apart.",
    ):
        assert needed in result.output
    assert "report.html" in result.output.replace("\n", "")
    assert list((tmp_path / "cache").iterdir()), "the world is kept where it was asked to be"


def test_an_unwritable_output_is_one_message_and_exit_code_2(small: None, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    result = CliRunner().invoke(app, ["demo", "--quick", "--output", str(tmp_path / "file" / "x"), "--cache", str(tmp_path)])
    assert result.exit_code == 2
    assert "cannot write into" in result.output and "Traceback" not in result.output


def test_help_needs_nothing_heavy() -> None:
    import subprocess

    code = (
        "import sys; from typer.testing import CliRunner; from multiref.cli import app; r = CliRunner().invoke(app, ['demo', "
        "'--help']); "
        "assert r.exit_code == 0 and '--quick' in r.output; print([m for m in ('torch', 'transformers', "
        "'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert "transformers" not in done.stdout and "matplotlib" not in done.stdout
