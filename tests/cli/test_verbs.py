"""The verbs of other packages: listed with ours, never in their way."""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from multiref import cli

GOOD = '''"""`multiref hello`: say hello.

More about it.
"""
import typer

def command() -> None:
    typer.echo("hello")
'''


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """A `multiref` as it is where other packages bring a good verb, one that is not there, one whose package fails,
    one that has our name."""
    files = {
        "good_verbs/__init__.py": "",
        "good_verbs/hello.py": GOOD,
        "bad_verbs/__init__.py": "1 / 0",
        "odd_verbs.py": "import nothing_of_this_name",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    brought = {
        "hello": "good_verbs.hello",
        "gone": "not_installed.verb",
        "broken": "bad_verbs.verb",
        "odd": "odd_verbs",
        "train": "bad_verbs.train",
    }
    points = [EntryPoint(name, module, "multiref.verbs") for name, module in brought.items()]
    monkeypatch.setattr(cli, "entry_points", lambda group: points)
    app = typer.Typer(cls=cli.Verbs, name="multiref", no_args_is_help=True, add_completion=False)
    app.callback()(cli.root)
    yield lambda *arguments: CliRunner().invoke(app, list(arguments))
    for name in ("good_verbs", "good_verbs.hello", "odd_verbs"):
        sys.modules.pop(name, None)


def test_help_lists_them_all_whatever_they_are(ask):
    shown = ask("--help")
    assert shown.exit_code == 0
    text = " ".join(shown.output.replace("│", " ").split())
    assert "Say hello" in text and "inspect" in text
    assert "cannot be loaded from not_installed.verb" in text and "cannot be loaded from bad_verbs.verb" in text
    assert "Do what a run's file says" in text  # nobody takes our names


def test_a_good_one_runs_and_a_broken_one_is_one_message(ask):
    assert ask("hello").output == "hello\n"
    broken = ask("odd")
    assert broken.exit_code == 2 and "nothing_of_this_name" in broken.stderr and broken.stderr.count("\n") == 1
    assert ask("train", "--help").exit_code == 0
    assert ask("solve", "--help").exit_code == 0


def test_every_verb_of_ours_has_a_file_and_every_file_a_verb():
    files = {path.stem for path in Path(cli.__file__).parent.glob("*.py")}
    assert files - {"__init__", "__main__", "bars", "help", "options", "voice"} == set(cli.VERBS)
    for verb in cli.VERBS:
        assert cli.load(verb, f"multiref.cli.{verb}").name == verb
