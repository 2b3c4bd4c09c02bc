"""A verb in a process that ends where it is told: at the n-th write into its folder, by a signal or a full disk."""

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HOW = ("SIGKILL", "SIGTERM", "SIGINT", "ENOSPC")
CODES = {"SIGKILL": -9, "SIGTERM": 143, "SIGINT": 130, "ENOSPC": 2}
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
STRATA = {  # part of a path → what is going on; the first that fits
    "checkpoint": "checkpoint", "model": "model", "shards": "scoring", "samples": "scoring", "records": "scoring",
    ".html": "report", "figures": "report", ".json": "report",
}  # fmt: skip


Beside = Callable[[Path, Path], None]


@dataclass(frozen=True)
class Outcome:
    """How a process ended: exit code (negative: the signal), what it said on stderr, its writes (event, path), seconds, and
    the processes that it left behind."""

    code: int
    said: str
    writes: list[tuple[str, str]]
    seconds: float
    orphans: bool


class Watch:
    """An audit hook that counts the writes under a folder, and strikes at one of them."""

    def __init__(self, folder: Path, journal: Path, at: int, how: str) -> None:
        self.folder, self.at, self.how, self.count = os.fspath(folder), at, how, 0
        self.journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def __call__(self, event: str, args: tuple[object, ...]) -> None:
        if event not in EVENTS or not isinstance(args[0], str | bytes | os.PathLike):
            return
        path = os.fsdecode(args[0])
        if not path.startswith(self.folder) or (event == "open" and not _writes(args)):
            return
        self.count += 1
        os.write(self.journal, f"{event}\t{path.removeprefix(self.folder)}\n".encode())
        if self.how == "ENOSPC" and self.at and self.count >= self.at and event in ("open", "os.mkdir"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        if self.count == self.at and self.how != "ENOSPC":
            os.kill(os.getpid(), getattr(signal, self.how))


def _writes(args: tuple[object, ...]) -> bool:
    mode, flags = args[1], args[2]
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))


def stratum(path: str) -> str:
    """Claim, scoring, checkpoint, model or report: what a write belongs to."""
    return next((name for part, name in STRATA.items() if part in path and not path.startswith("/config")), "claim")


def run(
    argv: list[str], folder: Path, log: Path, *, at: int = 0, how: str = "", after: float = 0.0, beside: Beside | None = None
) -> Outcome:
    """`multiref argv` in a child of this process, which has imported everything already; its writes go into `folder`.

    at, how: at which write it ends, and by what; 0: at none. after: seconds, instead: then the signal comes from outside.
    beside: what a thread of the child does meanwhile, given the folder and the file of the child's output.
    """
    log.mkdir(exist_ok=True)
    sys.stdout.flush()
    began, child = time.monotonic(), os.fork()
    if child == 0:
        os.setsid()
        for stream, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(log / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
            setattr(sys, name, os.fdopen(stream, "w", encoding="utf-8", closefd=False))  # pytest's own writes elsewhere
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = ["multiref", *argv]
        sys.addaudithook(Watch(folder, log / "writes", at, how))
        from multiref.cli import main

        if beside is not None:
            threading.Thread(target=beside, args=(folder, log / "stdout"), daemon=True).start()
        main()
        raise SystemExit(0)
    if after:
        time.sleep(after)
        (os.killpg if how == "SIGINT" else os.kill)(child, getattr(signal, how))  # Ctrl-C reaches the group
    _, status = os.waitpid(child, 0)
    seconds = time.monotonic() - began
    writes = [(event, path) for event, _, path in (line.partition("\t") for line in (log / "writes").read_text().splitlines())]
    return Outcome(os.waitstatus_to_exitcode(status), (log / "stderr").read_text(), writes, seconds, not _group_ends(child))


def _group_ends(group: int, *, within: float = 3.0) -> bool:
    """Whether nothing of a process group runs any more; what still does is ended."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        if not _running(group):
            return True
        time.sleep(0.05)
    os.killpg(group, signal.SIGKILL)
    return False


def _running(group: int) -> bool:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, there = stat.read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(there) == group and state != "Z":
            return True
    return False


def problem(outcome: Outcome, expected: int, done: int) -> str | None:
    """What is wrong with how it ended; done: the exit code of one that the kill came too late for."""
    lines = [line for line in outcome.said.splitlines() if line.strip() and "Warning" not in line]
    if outcome.orphans:
        return "processes were left behind"
    if "Traceback" in outcome.said:
        return f"a traceback: {lines[-1] if lines else ''}"
    if outcome.code not in (expected, done):
        return f"exit code {outcome.code}, expected {expected}: {' '.join(lines)[-300:]}"
    return None
