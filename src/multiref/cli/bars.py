"""A bar with rate and time left for whatever takes more than two seconds; plain lines where there is no terminal."""

import sys
import time
from types import TracebackType
from typing import Any

SILENT = 2.0  # seconds: jobs that are shorter say nothing
STALE = 120.0  # of which nothing was heard for so long does not go on
BETWEEN = 15.0  # seconds from one plain line to the next


class Bars:
    """Watches what the library tells (`multiref._progress`), on standard error: one job at a time, without its parts."""

    def __init__(self) -> None:
        self.what, self.of = "", 0
        self.began = self.said = self.heard = 0.0
        self.first = 0
        self.bar: Any = None

    def __enter__(self) -> "Bars":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    def __call__(self, what: str, done: int, of: int) -> None:
        now = time.monotonic()
        if self.what and what != self.what and now - self.heard < STALE:
            return  # a part of what is shown
        if (what, of) != (self.what, self.of) or done < self.first:
            self._stop()
            self.what, self.of, self.first, self.began, self.said = what, of, done, now, now - BETWEEN + SILENT
        self.heard = now
        over = 0 < of <= done
        if now - self.began < SILENT:
            if over:
                self._stop()
            return
        if sys.stderr.isatty() or self.bar is not None:
            self._draw(done)
        elif now - self.said >= BETWEEN or over:
            self.said = now
            print(f"{what}: {self._shown(done, now)}", file=sys.stderr, flush=True)
        if over:
            self._stop()

    def _shown(self, done: int, now: float) -> str:
        rate = (done - self.first) / max(now - self.began, 1e-9)
        left = f", {_clock((self.of - done) / rate)} left" if rate and done < self.of else ""
        return f"{done:,}{f'/{self.of:,}' if self.of else ''}, {_per_second(rate)}{left}"

    def _draw(self, done: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        if self.bar is None:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=24),
                       TextColumn("{task.fields[shown]}", markup=False))  # fmt: skip
            # what is printed meanwhile stands above the bar, unless it goes to a file
            self.bar = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty())
            self.bar.start()
            self.task = self.bar.add_task(self.what, total=self.of or None, shown="")
        self.bar.update(self.task, completed=done, shown=self._shown(done, time.monotonic()))

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
        self.what = ""


def _per_second(rate: float) -> str:
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s" if rate >= 0.1 else f"{1 / rate:.0f} s each" if rate else "0/s"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
