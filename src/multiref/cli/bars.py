"""A bar with rate and time left for whatever takes more than two seconds; plain lines where there is no terminal."""

import os
import sys
import threading
import time
from types import TracebackType
from typing import Any

SILENT = 2.0  # seconds: jobs that are shorter say nothing
STALE = 120.0  # of which nothing was heard for so long does not go on
BETWEEN = 15.0  # seconds from one plain line to the next
TICK = 0.5  # seconds: a job whose items are long is shown, and its time goes on, between two of them


class Bars:
    """Watches what the library tells (`multiref._progress`), on standard error: one job at a time, without its parts."""

    def __init__(self) -> None:
        self.what, self.done, self.of = "", 0, 0
        self.began = self.said = self.heard = 0.0
        self.first = 0
        self.bar: Any = None
        self.lock, self.over, self.process = threading.RLock(), threading.Event(), os.getpid()

    def __enter__(self) -> "Bars":
        threading.Thread(target=self._tick, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.over.set()
        with self.lock:
            self._stop()

    def __call__(self, what: str, done: int, of: int) -> None:
        if os.getpid() != self.process:
            return  # a forked worker: its parent counts, and may have held the lock when it was forked
        with self.lock:
            now = time.monotonic()
            if self.what and what != self.what and now - self.heard < STALE:
                return  # a part of what is shown
            if done < 0:
                self._stop()
                return
            if (what, of) != (self.what, self.of) or done < self.first:
                self._stop()
                self.what, self.of, self.first, self.began, self.said = what, of, done, now, now - BETWEEN + SILENT
            self.done, self.heard = done, now
            over = 0 < of <= done
            self._show(now, over)
            if over:
                self._stop()

    def _tick(self) -> None:
        while not self.over.wait(TICK):
            with self.lock:
                if self.what and not self.over.is_set():
                    self._show(time.monotonic())

    def _show(self, now: float, over: bool = False) -> None:
        if now - self.began < SILENT:
            return
        if sys.stderr.isatty() or self.bar is not None:
            self._draw(now)
        elif now - self.said >= BETWEEN or over:
            self.said = now
            print(f"{self.what}: {self._shown(now)}", file=sys.stderr, flush=True)

    def _shown(self, now: float) -> str:
        passed = self.heard - self.began
        rate = (self.done - self.first) / passed if passed > 0 else 0.0
        parts = [f"{self.done:,}{f'/{self.of:,}' if self.of else ''}"]
        if rate:
            parts.append(_per_second(rate))
            if self.done < self.of:
                parts.append(f"{_clock(max((self.of - self.done) / rate - (now - self.heard), 0.0))} left")
        return ", ".join(parts)

    def _draw(self, now: float) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        if self.bar is None:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=24),
                       TextColumn("{task.fields[shown]}", markup=False))  # fmt: skip
            # what is printed meanwhile stands above the bar, unless it goes to a file
            self.bar = Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False,
                                redirect_stdout=sys.stdout.isatty())  # fmt: skip
            self.bar.start()
            self.task, self.said = self.bar.add_task(self.what, total=self.of or None, shown=self._shown(now)), 0.0
        if now - self.said >= TICK:
            self.said = now
            self.bar.update(self.task, completed=self.done, shown=self._shown(now), refresh=True)

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
        self.what = ""


def _per_second(rate: float) -> str:
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s" if rate >= 0.1 else f"{1 / rate:.0f} s each"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
