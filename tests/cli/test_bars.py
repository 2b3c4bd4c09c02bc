"""A bar with rate and time left above two seconds in a terminal, plain lines elsewhere, and nothing for what is quick."""

import io
import sys
import time

import pytest
import typer
from rich.console import Console

from multiref._progress import each_told, part_of, rest, tell, watched_by
from multiref.cli import app, bars, load, voice
from multiref.errors import DataError


class Terminal(io.StringIO):
    """Standard error as a terminal of 80 columns."""

    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Time stands still until it is moved."""
    now = [100.0]
    monkeypatch.setattr(bars.time, "monotonic", lambda: now[0])
    return now


def work(clock, count, seconds, what="sampling"):
    for _ in each_told(range(count), what, count):
        clock[0] += seconds


@pytest.mark.parametrize("kind", [io.StringIO, Terminal], ids=["file", "terminal"])
def test_what_takes_under_two_seconds_says_nothing(kind, clock, monkeypatch):
    monkeypatch.setattr("sys.stderr", kind())
    with bars.Bars() as watch, watched_by(watch):
        work(clock, 10, 0.15)
    assert bars.sys.stderr.getvalue() == ""


def test_plain_lines_have_rate_and_time_left(clock, monkeypatch):
    """40 items of a second: a line at 2 s, then one every 15 s, and the end."""
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with bars.Bars() as watch, watched_by(watch):
        work(clock, 40, 1.0)
    assert bars.sys.stderr.getvalue().splitlines() == [
        "sampling: 2/40, 1/s, 0:38 left",
        "sampling: 17/40, 1/s, 0:23 left",
        "sampling: 32/40, 1/s, 0:08 left",
        "sampling: 40/40, 1/s",
    ]


def test_rows_of_which_nobody_knows_how_many_have_a_rate_and_make_way_for_what_follows(clock, monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with bars.Bars() as watch, watched_by(watch):
        for done in range(0, 20_000, 1000):
            tell("reading", done, 0)
            clock[0] += 1.0
        tell("reading", 1, 1)
        work(clock, 3, 1.0, "scoring")
    assert bars.sys.stderr.getvalue().splitlines() == [
        "reading: 2,000, 1,000/s",
        "reading: 17,000, 1,000/s",
        "scoring: 2/3, 1/s, 0:01 left",
        "scoring: 3/3, 1/s",
    ]


def test_a_terminal_sees_a_bar_which_makes_way_for_whatever_else_is_written(clock, monkeypatch):
    """Also for a console of rich, which looks through rich's own proxies. Of what is in the middle of a line nothing is drawn
    over."""
    monkeypatch.setenv("COLUMNS", "80")
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("sys.stdout", terminal)
    with bars.Bars() as watch, watched_by(watch):
        for done in range(6):
            tell("sampling " + "x" * 99, done, 100)
            clock[0] += 1.0
        drawn = terminal.getvalue().split("\r")[-1]
        assert "━" in drawn and drawn.endswith("5/100, 1/s, 1:35 left\x1b[K") and len(drawn) < 80 + 3
        Console().print("a line")
        assert terminal.getvalue().endswith("left\x1b[K\r\x1b[Ka line\n")
        print("half of a", end="", file=sys.stderr)
        tell("sampling " + "x" * 99, 6, 100)
        assert terminal.getvalue().endswith("\nhalf of a")
        print(" line", file=sys.stderr)
        tell("sampling " + "x" * 99, 7, 100)
        assert "7/100" in terminal.getvalue().split("\n")[-1]
    assert terminal.getvalue().endswith("\r\x1b[K") and sys.stderr is terminal is sys.stdout


def test_parts_of_a_job_count_on_and_are_not_shown_beside_it(clock, monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    heard = []
    with watched_by(lambda *told: heard.append(told)), part_of("scoring under a", 10, 30):
        tell("scoring", 5, 20)
    tell("scoring", 6, 20)  # to nobody any more
    assert heard == [("scoring under a", 15, 30)]
    with bars.Bars() as watch, watched_by(watch):
        for _ in each_told(range(9), "left early", 9):
            break
        for step in each_told(range(30), "training", 30):
            clock[0] += 1.0
            work(clock, 2, 0.01, f"scoring {step}")
    lines = bars.sys.stderr.getvalue().splitlines()
    assert len(lines) == 3 and all(line.startswith("training: ") for line in lines)


def test_a_job_whose_items_are_long_is_shown_between_two_of_them(clock, monkeypatch):
    """Nobody tells anything: at three seconds it is shown; after an item of 30 s and 15 s more, 3 · 30 − 15 s are left."""
    monkeypatch.setattr("sys.stderr", io.StringIO())
    monkeypatch.setattr(bars, "TICK", 0.01)

    def said(line):
        ends = time.perf_counter() + 5
        while line not in bars.sys.stderr.getvalue().splitlines() and time.perf_counter() < ends:
            time.sleep(0.01)
        return line in bars.sys.stderr.getvalue().splitlines()

    with bars.Bars() as watch, watched_by(watch):
        tell("claims", 0, 4)
        clock[0] += 3
        assert said("claims: 0/4")
        clock[0] += 27
        tell("claims", 1, 4)
        clock[0] += 15
        assert said("claims: 1/4, 30 s each, 1:15 left")


def test_a_verb_counts_from_its_own_beginning(clock, monkeypatch):
    """30 s of a job and 40 s of which nothing is told: the verb has taken 1:10, not 0:40."""
    monkeypatch.setattr("sys.stderr", io.StringIO())
    monkeypatch.setattr(bars.Bars, "_tick", lambda self: None)
    with bars.Bars("real") as watch, watched_by(watch):
        work(clock, 3, 10)
        clock[0] += 40
        watch._show(clock[0])
    assert sys.stderr.getvalue().endswith("real: 1:10 so far\n")


def test_every_verb_is_seen_from_its_third_second_on(monkeypatch):
    """A planted wait in the place of each verb's work, of which nothing is told: the time gone by, as a bar and as plain lines,
    and nothing under --quiet, or while a person is waited for."""
    monkeypatch.setattr(bars, "SILENT", 0.02)
    monkeypatch.setattr(bars, "TICK", 0.005)
    waits = []

    def planted(*_):
        ends = time.perf_counter() + (0.05 if waits else 5)
        while "so far" not in bars.sys.stderr.getvalue() and time.perf_counter() < ends:
            time.sleep(0.002)
        if waits == ["rest"]:
            rest()
            waits.append(bars.sys.stderr.getvalue())
            planted()
        raise DataError("enough")

    monkeypatch.setattr(voice, "_filled", planted)
    group = typer.main.get_command(app)
    for verb, home in group.homes.items():
        command = load(verb, home)
        for each in getattr(command, "commands", {"": command}).values():
            for kind, shown in ((io.StringIO, f"{verb}: 0:00 so far\n"), (Terminal, f"\r{verb}  0:00 so far\x1b[K")):
                monkeypatch.setattr("sys.stderr", kind())
                with pytest.raises(DataError, match="enough"), typer.Context(each):
                    each.callback()
                assert shown in sys.stderr.getvalue(), (verb, each.name)
    waits.append("quiet")
    monkeypatch.setattr("sys.stderr", Terminal())
    with pytest.raises(DataError), typer.Context(command):
        command.callback(quiet=True)
    assert sys.stderr.getvalue() == ""
    monkeypatch.setattr("sys.stderr", Terminal())
    waits[:] = ["rest"]
    with pytest.raises(DataError), typer.Context(command):
        command.callback()
    assert sys.stderr.getvalue() == waits[1]
