"""Files: what is read passes one door (`open_file`, `read_text`, `read_lines`), what is written appears whole or not at all."""

import contextlib
import gzip
import io
import os
import stat
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from multiref.errors import DataError, MultirefError, OutputError

MIB = 2**20
PACKED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}  # a name's ending → how the file is packed
SHORTEST = 64  # bytes that a row of a packed file counts as, however short it is: reading it takes time, too
EMPTY = 10**5  # lines with nothing in them, one after the other
RATIO = 50  # unpacked bytes for each on disk: text packs to a third, the most repetitive rows to a thirtieth
TEMPORARY = ".part"  # what a killed process may leave behind; never read
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
          stat.S_IFBLK: "a device"}  # fmt: skip

# ---- reading ----


def open_file(
    path: str | os.PathLike[str], expected: str, *, largest: int = 64 * MIB, error: type[MultirefError] = DataError
) -> io.BufferedReader:
    """A regular file, opened for reading. A pipe, a device or a folder is refused without being opened.

    Args:
        expected: what the file should be, for messages.
        largest: bytes on disk that are still accepted.
        error: what is raised for a file that is none, cannot be opened, or is larger.
    """
    try:
        found = os.stat(path)
        if stat.S_ISREG(found.st_mode):
            # it may have become a pipe meanwhile: opening must not wait for its other end
            handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
            file, found = os.fdopen(handle, "rb"), os.fstat(handle)
    except FileNotFoundError as wrong:
        raise error(f"{path} does not exist; expected {expected}.") from wrong
    except (OSError, ValueError) as wrong:  # no permission, a name that is too long or has a NUL in it, a folder meanwhile
        raise error(f"{path} cannot be read ({_reason(wrong)}); expected {expected}.") from wrong
    if not stat.S_ISREG(found.st_mode):
        raise error(f"{path} is {_KINDS.get(stat.S_IFMT(found.st_mode), 'no file')}; expected {expected}.")
    if found.st_size > largest:
        file.close()
        raise error(f"{path} has {_size(found.st_size)}; expected {expected} of at most {_size(largest)} (largest={largest}).")
    return file


class Unpacked:
    """A file as it unpacks (by its name's ending, one of `PACKED`, else as it is), within limits.

    Args:
        largest: bytes on disk, and unpacked. ratio: see `check_unpacked`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        expected: str,
        *,
        largest: int,
        ratio: int = RATIO,
        error: type[MultirefError] = DataError,
    ) -> None:
        self.path, self.expected, self.largest, self.ratio, self.error = path, expected, largest, ratio, error
        self.read_so_far = 0
        self._packed = open_file(path, expected, largest=largest, error=error)
        self._file = _unpacking(self._packed, os.fspath(path).lower())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._packed.close()

    def take(self, size: int, *, line: bool = False) -> bytes:
        """The next bytes, at most so many; with `line`, up to the end of the line."""
        try:
            part: bytes = self._file.readline(size) if line else self._file.read(size)
        except (OSError, EOFError, zlib.error, ValueError) as wrong:  # one that is not packed so, is damaged or cut off
            raise self.error(
                f"{self.path} cannot be read beyond {self.read_so_far:,} bytes ({_reason(wrong)}); expected {self.expected}."
            ) from wrong
        self.read_so_far += max(len(part), SHORTEST) if line and part and self._file is not self._packed else len(part)
        if self.read_so_far > 64 * MIB:
            size = self.read_so_far if self._file is self._packed else os.fstat(self._packed.fileno()).st_size
            check_unpacked(self.read_so_far, size, self.path, largest=self.largest, ratio=self.ratio, error=self.error)
        return part

    def rest(self) -> bytes:
        """Everything that is left."""
        content = bytearray()
        while part := self.take(MIB):
            content += part
        return bytes(content)


def _unpacking(packed: io.BufferedReader, name: str) -> Any:
    ending = next((ending for ending in PACKED if name.endswith(ending)), None)
    if ending == ".gz":
        return gzip.GzipFile(fileobj=packed)
    if ending is None:
        return packed
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(packed, PACKED[ending]))


def read_text(
    path: str | os.PathLike[str], expected: str, *, largest: int = 64 * MIB, error: type[MultirefError] = DataError
) -> str:
    """All of a text in UTF-8, with or without a byte order mark; every kind of line end is a newline."""
    with Unpacked(path, expected, largest=largest, error=error) as file:
        return decode(file.rest(), str(path), first=True, error=error).replace("\r\n", "\n").replace("\r", "\n")


def read_lines(
    path: str | os.PathLike[str],
    expected: str,
    *,
    largest: int = 8192 * MIB,
    longest: int = 16 * MIB,
    error: type[MultirefError] = DataError,
) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of a text in UTF-8, plain or packed (`PACKED`); memory for one line at a time, which has at most
    `longest` bytes."""
    number, name, empty = 0, os.path.basename(path), 0
    with Unpacked(path, expected, largest=largest, error=error) as file:
        while line := file.take(longest + 1, line=True):
            number += 1
            empty = 0 if line.strip() else empty + 1
            if empty > EMPTY:
                raise error(f"{name}:{number}: more than {EMPTY:,} empty lines; expected {expected}.")
            if len(line) > longest:
                raise error(f"{name}:{number}: the row has more than {_size(longest)}; expected {expected}.")
            yield number, decode(line, f"{name}:{number}", first=number == 1, error=error)


def check_unpacked(
    unpacked: int,
    packed: int,
    path: object,
    *,
    largest: int,
    ratio: int = RATIO,
    error: type[MultirefError] = DataError,
) -> None:
    """`error` for a file that unpacks to more than `largest`, or to more than `ratio` bytes for each one on disk and more than
    64 MiB."""
    allowed = min(largest, max(64 * MIB, ratio * packed))
    if unpacked > allowed:
        raise error(
            f"{path}: {_size(packed)} on disk unpack to more than {_size(allowed)}; expected at most {_size(largest)} "
            f"(largest={largest}), and beyond 64 MiB at most {ratio} bytes for each one on disk. "
            "If the file is what you mean, unpack it or split it."
        )


def decode(content: bytes, where: str, *, first: bool, error: type[MultirefError] = DataError) -> str:
    """UTF-8 → text. `first`: a byte order mark may stand in front, and says which encoding another file has."""
    if first and content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise error(
            f"{where}: byte 1 of the row is not UTF-8 (the file is UTF-16 or UTF-32); save the file as UTF-8 and try again."
        )
    try:
        return content.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as wrong:
        raise error(
            f"{where}: byte {wrong.start + 1} of the row is not UTF-8; save the file as UTF-8 and try again."
        ) from wrong


def as_path(given: str | os.PathLike[str]) -> Path:
    """A path as a person writes it: `~` is the home folder."""
    return Path(given).expanduser()


def unusable_name(path: str) -> str | None:
    """Why no file can have this name, on any system that we know; None where one can."""
    try:
        long = max(map(len, os.fsencode(path).replace(b"\\", b"/").split(b"/"))) > 255 or len(path) > 4000
    except UnicodeEncodeError:
        return "has half of a character in it"
    return "has a NUL in it" if "\0" in path else "is longer than a file's name can be" if long else None


def _reason(wrong: Exception) -> str:
    return str(getattr(wrong, "strerror", None) or wrong)


def _size(count: int) -> str:
    return f"{count:,} bytes" if count < MIB else f"{count / MIB:,.4g} MiB"


# ---- writing ----


def write_whole(path: str | os.PathLike[str], content: bytes | str) -> Path:
    """Write to `path`, its folder too, so that a reader sees the old file or the new one.
    OutputError where it cannot be written."""
    target = as_path(path)
    try:
        return replace_whole(target, content)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}; choose a folder that can be written") from error


def check_writable(path: str | os.PathLike[str]) -> None:
    """OutputError, before the work that is to be kept there, where `write_whole` could not write a file."""
    target = as_path(path)
    if target.is_dir():
        raise OutputError(f"cannot write {target}: it is a folder; name a file in it")
    if not is_device(target):
        there = next(each for each in target.parents if os.path.lexists(each))  # the others are made with the file
        write_whole(there / f".{target.name}{TEMPORARY}", b"").unlink()


def replace_whole(path: Path, content: bytes | str) -> Path:
    """The same with the system's own error: a temporary file in the same folder, flushed, renamed, the rename flushed too.
    What is a device or a pipe (/dev/stdout) is written to, not replaced."""
    content = content.encode("utf-8") if isinstance(content, str) else content
    if is_device(path):
        handle = os.open(path, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe that nobody reads is an error
        os.set_blocking(handle, True)
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        return path
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)
    return path


def is_device(path: Path) -> bool:
    """Whether something is there that is neither a file nor a folder: as root, a rename would put a file in its place."""
    return path.exists() and not path.is_file() and not path.is_dir()


def flush_folder(folder: Path) -> None:
    """Make what was renamed in it durable, where the system lets a folder be flushed."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
