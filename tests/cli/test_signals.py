"""A signal ends a verb in one line, whatever a library makes of it."""

import os
import signal

import pytest
import typer

from multiref import cli
from multiref.errors import DataError


@pytest.mark.parametrize("made", [ValueError, DataError], ids=["a library's error", "ours of a file"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_of_which_a_library_made_an_error(number, made, monkeypatch, capsys):
    """Compiled code that calls Python gives the interrupt on as an error of its own (matplotlib: ValueError)."""

    def library() -> None:
        try:
            os.kill(os.getpid(), number)
            signal.sigtimedwait([], 1)
        except KeyboardInterrupt:
            raise made("Invalid affine transformation matrix") from None

    verb = typer.Typer(add_completion=False)
    verb.command("doctor")(library)
    monkeypatch.setattr(cli, "load", lambda *_: typer.main.get_command(verb))
    monkeypatch.setattr(cli, "_heard", [])
    before = signal.signal(number, cli._end)
    try:
        with pytest.raises(SystemExit) as ended:
            cli.app(["doctor"])
    finally:
        signal.signal(number, before)
    told, code = ("Ended.", 143) if number == signal.SIGTERM else ("Interrupted.", 130)
    assert ended.value.code == code
    assert capsys.readouterr().err.startswith(told)


def test_without_a_signal_an_error_stays_what_it_is(monkeypatch):
    def library() -> None:
        raise ValueError("a bug")

    verb = typer.Typer(add_completion=False)
    verb.command("doctor")(library)
    monkeypatch.setattr(cli, "load", lambda *_: typer.main.get_command(verb))
    monkeypatch.setattr(cli, "_heard", [])
    with pytest.raises(ValueError, match="a bug"):
        cli.app(["doctor"])


@pytest.mark.parametrize("verb", ["bound", "decode", "inspect", "sweep"])
def test_a_verb_that_keeps_nothing_on_its_way_does_not_say_that_it_goes_on(verb, capsys):
    assert cli._said(KeyboardInterrupt(), verb) == 130 and "starts again from the beginning" in capsys.readouterr().err
    assert cli._said(KeyboardInterrupt(), "train") == 130 and "to go on" in capsys.readouterr().err
