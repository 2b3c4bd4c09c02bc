"""One writer at a time: a lock that the kernel lets go when its process ends, however it ends; where the file system has none,
a file with a heartbeat."""

import contextlib
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from multiref._files import MIB, read_text
from multiref._json import parse_json
from multiref.errors import MultirefError, OutputError

try:
    import fcntl
except ImportError:  # Windows: heartbeats
    fcntl = None  # type: ignore[assignment]

BEAT = 5.0  # seconds between heartbeats; three without one, and its holder is gone
LINGER = 10.0  # seconds in which what a process left behind, ended itself, may still hold its lock
_PAUSE = 0.2


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, since when. space: where on the machine the process's number counts (a container has its own)."""

    pid: int
    host: str
    since: str
    space: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    @property
    def here(self) -> bool:
        """Whether this process can see it."""
        return os.name == "posix" and (self.host, self.space) == _place()

    @property
    def ended(self) -> bool:
        """Whether it is known to run no more."""
        try:
            if self.here:
                os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):
            return False
        return False


class Held(OutputError):
    """Another process holds the lock."""


class Lock:
    """A lock that this process holds."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path, self.handle = path, handle
        me = Holder(os.getpid(), _place()[0], datetime.now().astimezone().isoformat(" ", "seconds"), _place()[1])
        os.ftruncate(handle, 0)
        os.write(handle, json.dumps(asdict(me)).encode())

    def check(self) -> None:
        """OutputError where another process has taken over."""
        if not _same(self.path, self.handle):
            raise OutputError(f"{self.path.parent} was taken over by {_named(self.path)}; this process stops.")


@contextmanager
def alone(path: Path, *, waiting: Callable[[str], None] | None = None, take_over: bool = False) -> Iterator[Lock]:
    """Hold the lock at `path`: a file, which is removed at the end.

    Args:
        waiting: told once who holds it, while it is waited for. None: it is not waited for.
        take_over: take it from whoever holds it.

    Errors: Held where it is not waited for; OSError where the file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if take_over:
        path.unlink(missing_ok=True)
    kernel, watch, began, told = _kernel_locks(path.parent), _Watch(path), time.monotonic(), False
    while (handle := (_flock if kernel else _create)(path)) is None:
        holder = _holder(path)
        ended = holder is not None and holder.ended
        if kernel:
            alive = not ended or time.monotonic() - began > LINGER
        else:
            alive = not ended and (watch.moved() or (holder is not None and holder.here))
            if ended or watch.stopped():
                watch.remove()
                continue
        if alive and waiting is None:
            raise Held(f"{path.parent} is being written by {_named(path)}")
        if alive and waiting is not None and not told:
            told = True
            waiting(f"Waiting for {_named(path)}, which is writing {path.parent}.")
        time.sleep(_PAUSE)
    stop = threading.Event()
    try:
        lock = Lock(path, handle)
        if not kernel:
            threading.Thread(target=_beat, args=(path, handle, stop), daemon=True).start()
        yield lock
    finally:
        stop.set()
        if _same(path, handle):
            with contextlib.suppress(OSError):
                path.unlink()
        os.close(handle)


@contextmanager
def write_alone(folder: Path, *, take_over: bool | None = None) -> Iterator[Lock]:
    """Write a folder while no other process does that asks for the same. OutputError where another does, or where nothing can
    be written.

    Args:
        take_over: whether the other one is told to stop; None: nobody can ask for that.
    """
    or_stop = "" if take_over is None else "; --take-over makes it stop"
    with contextlib.ExitStack() as held:
        try:
            lock = held.enter_context(alone(folder / ".lock", take_over=bool(take_over)))
        except Held as error:
            raise OutputError(f"output: {error}. Wait for it, or choose another folder{or_stop}.") from None
        except OSError as error:
            raise OutputError(f"output: cannot write into {folder}: {error.strerror or error}; choose another folder") from None
        yield lock


def _kernel_locks(folder: Path) -> bool:
    """Whether files here can be locked."""
    with tempfile.TemporaryFile(dir=folder) as probe:
        try:
            fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (AttributeError, OSError):
            return False
    return True


def _flock(path: Path) -> int | None:
    """The open, locked file; None where another process has it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        except BaseException:
            os.close(handle)
            raise
        if _same(path, handle):
            return handle
        os.close(handle)  # its holder removed it meanwhile


def _create(path: Path) -> int | None:
    """The open file, which was not there before; None where it was."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return None


def _beat(path: Path, handle: int, stop: threading.Event) -> None:
    while not stop.wait(BEAT):
        with contextlib.suppress(OSError):
            if _same(path, handle):
                os.utime(path)


class _Watch:
    """Whether a file is touched while one looks: clocks of two machines need not agree."""

    def __init__(self, path: Path) -> None:
        self.path, self.first, self.last, self.since = path, self._look(path), self._look(path), time.monotonic()

    def moved(self) -> bool:
        """Whether it was touched, or is another one, since the first look."""
        if (now := self._look(self.path)) != self.last:
            self.last, self.since = now, time.monotonic()
        return self.last != self.first

    def stopped(self) -> bool:
        """Whether three beats have passed without one."""
        self.moved()
        return time.monotonic() - self.since > 3 * BEAT

    def remove(self) -> None:
        """Out of the way, unless another process was quicker."""
        with contextlib.suppress(OSError):
            if self._look(self.path) == self.last:
                self.path.unlink()
        self.moved()

    @staticmethod
    def _look(path: Path) -> tuple[int, int]:
        try:
            found = path.lstat()
        except OSError:
            return (0, 0)
        return (found.st_ino, found.st_mtime_ns)


def _same(path: Path, handle: int) -> bool:
    """Whether the open file is the one that has this name."""
    try:
        one, other = os.stat(path, follow_symlinks=False), os.fstat(handle)
    except OSError:
        return False
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


def _holder(path: Path) -> Holder | None:
    """Who it says; None where it does not say."""
    try:
        found = parse_json(read_text(path, "a lock", largest=MIB), str(path))
        return Holder(int(found["pid"]), *(str(found[key])[:99] for key in ("host", "since", "space")))
    except (MultirefError, LookupError, TypeError, ValueError):
        return None


def _named(path: Path) -> str:
    return str(_holder(path) or "another process")


def _place() -> tuple[str, str]:
    """This machine, and where on it processes are numbered together."""
    try:
        return socket.gethostname(), os.readlink("/proc/self/ns/pid")
    except OSError:
        return socket.gethostname(), ""
