"""A bar with rate and time left for whatever takes more than two seconds; plain lines where there is no terminal."""

import contextlib
import os
import shutil
import sys
import threading
import time
from types import TracebackType
from typing import Any

SILENT = 2.0  # seconds: jobs that are shorter say nothing
STALE = 120.0  # of which nothing was heard for so long does not go on
BETWEEN = 15.0  # seconds from one plain line to the next
TICK = 0.5  # seconds: a job whose items are long is shown, and its time goes on, between two of them
WIDTH = 24  # of the bar itself


class Bars:
    """Watches what the library tells (`multiref._progress`), on standard error: one job at a time, without its parts.

    The bar is the terminal's last line. Whatever else is written, by whichever library, first takes the bar away.
    verb: what is shown, with the time gone by, while nobody tells of anything; "": nothing is.
    """

    def __init__(self, verb: str = "") -> None:
        self.verb, self.resting = verb, False
        self.what, self.done, self.of, self.first = "", 0, 0, 0
        self.began = self.said = self.heard = 0.0
        self._nothing()
        self.start = self.began
        self.drawn = self.within = False  # the bar is on the terminal; something else is in the middle of a line
        self.terminal = sys.stderr if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" else None
        self.marks = "━·" if "utf" in (getattr(sys.stderr, "encoding", None) or "utf-8").lower() else "#-"
        self.lock, self.over, self.process = threading.RLock(), threading.Event(), os.getpid()
        self.streams = (sys.stdout, sys.stderr)

    def __enter__(self) -> "Bars":
        if self.terminal is not None:
            sys.stdout, sys.stderr = (_Aside(each, self) if each.isatty() else each for each in self.streams)
        threading.Thread(target=self._tick, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.over.set()
        with self.lock:
            self._stop()
        sys.stdout, sys.stderr = self.streams

    def __call__(self, what: str, done: int, of: int) -> None:
        if os.getpid() != self.process:
            return  # a forked worker: its parent counts, and may have held the lock when it was forked
        with self.lock:
            now = time.monotonic()
            if self.what and what and what != self.what and now - self.heard < STALE:
                return  # a part of what is shown
            self.resting = not what
            if done < 0 or not what:
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

    def clear(self) -> None:
        """Take the bar away; the next tick draws it again."""
        if self.drawn and self.terminal is not None:
            self.terminal.write("\r\x1b[K")
            self.terminal.flush()
            self.drawn = False

    def _tick(self) -> None:
        while not self.over.wait(TICK):
            with self.lock:
                if (self.what or (self.verb and not self.resting)) and not self.over.is_set():
                    self._show(time.monotonic())

    def _show(self, now: float, over: bool = False) -> None:
        if now - self.began < SILENT:
            return
        if self.terminal is not None:
            if not self.within and (not self.drawn or now - self.said >= TICK):
                self.said, self.drawn = now, True
                self.terminal.write(f"\r{self._line(now)}\x1b[K")
                self.terminal.flush()
        elif now - self.said >= BETWEEN or over:
            self.said = now
            print(f"{self.what or self.verb}: {self._shown(now)}", file=sys.stderr, flush=True)

    def _line(self, now: float) -> str:
        """The bar, in one line of the terminal."""
        shown, room = self._shown(now), self._columns() - 1
        full = min(WIDTH, max(room - len(shown) - 12, 0)) if self.of else 0
        filled = round(full * self.done / self.of) if self.of else 0
        what = (self.what or self.verb)[: max(room - full - len(shown) - 2, 1)]
        return f"{what} {self.marks[0] * filled}{self.marks[1] * (full - filled)} {shown}"[:room]

    def _shown(self, now: float) -> str:
        passed = self.heard - self.began
        rate = (self.done - self.first) / passed if passed > 0 else 0.0
        if not (self.done or self.of):
            return f"{_clock(now - (self.began if self.what else self.start))} so far"
        parts = [f"{self.done:,}{f'/{self.of:,}' if self.of else ''}"]
        if rate:
            parts.append(_per_second(rate))
            if self.done < self.of:
                parts.append(f"{_clock(max((self.of - self.done) / rate - (now - self.heard), 0.0))} left")
        return ", ".join(parts)

    def _columns(self) -> int:
        with contextlib.suppress(OSError, ValueError, AttributeError):  # standard output may be no terminal, or another one
            if self.terminal is not None and (found := os.get_terminal_size(self.terminal.fileno()).columns):
                return found
        return shutil.get_terminal_size().columns

    def _stop(self) -> None:
        self.clear()
        self._nothing()

    def _nothing(self) -> None:
        """Nobody tells of anything from now on."""
        self.what, self.done, self.of, self.first = "", 0, 0, 0
        self.began = time.monotonic()
        self.said = max(self.said, self.began - BETWEEN + SILENT)  # but not soon after a line


class _Aside:
    """A stream of the terminal whose text stands above the bar."""

    def __init__(self, stream: Any, bars: Bars) -> None:
        self.stream, self.bars = stream, bars

    def write(self, text: str) -> int:
        if os.getpid() != self.bars.process:
            return int(self.stream.write(text))
        with self.bars.lock:
            self.bars.clear()
            if text:
                self.bars.within = not text.endswith("\n")
            return int(self.stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _per_second(rate: float) -> str:
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s" if rate >= 0.1 else f"{1 / rate:.0f} s each"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
