"""Files at URLs: listed, and fetched one at a time."""

import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import SplitResult, urlsplit

from multiref._files import MIB
from multiref.data.files import ENDINGS, EXPECTED, is_rows
from multiref.data.splits import in_order, is_hidden
from multiref.errors import DataError


def show(url: str) -> str:
    """Without a password or a token."""
    parts = split_url(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def split_url(url: str) -> SplitResult:
    """The parts of a URL; of a chain, of its first."""
    try:
        return urlsplit(url.partition("::")[0])
    except ValueError as wrong:
        raise DataError(f"{url[:60]} is no URL ({wrong}); expected {EXPECTED}.") from wrong


def name_in(url: str) -> str:
    """The last part of what a URL names; of a chain (zip://a.jsonl::s3://b/c.zip), of its first."""
    parts = split_url(url)
    return PurePosixPath(parts.netloc + parts.path).name


def list_files(text: str) -> list[str] | None:
    """The files of rows below a URL that names a folder, or has a star in it, in their order; None for any other text."""
    if "://" not in text or text.startswith(("http://", "https://")):
        return None
    if is_rows(name_in(text)) is not None and "*" not in text:
        return None
    import fsspec

    try:
        system, root = fsspec.core.url_to_fs(text)
        found = [PurePosixPath(each) for each in (system.glob(root) if "*" in root else system.find(root))]
    except Exception as wrong:  # as of `fetch`
        raise DataError(f"{show(text)} cannot be listed ({first_line(wrong)}); expected {EXPECTED}.") from wrong
    top = PurePosixPath(root.partition("*")[0]).parent if "*" in root else PurePosixPath(root)
    rows = sorted((each for each in found if is_rows(each.name) and not is_hidden(each, top)), key=in_order)
    if not rows:
        raise DataError(f"{show(text)}: nothing there has a name in {', '.join(ENDINGS)}; expected {EXPECTED}.")
    within = "".join(text.partition("::")[1:])
    return [f"{system.unstrip_protocol(str(each))}{within}" for each in rows]


def fetch(url: str, folder: Path, largest: int, say: Callable[[str], None]) -> Path:
    """The file that a URL names, in a folder of ours; no more than `largest` bytes of it."""
    target, shown = folder / (name_in(url) or "data"), show(url)
    if is_rows(target.name) is None:
        raise DataError(f"{shown}: unknown kind of file; expected {EXPECTED}.")
    say(f"Fetching {shown}.")
    size = 0
    try:
        with _opened(url) as stream, target.open("wb") as file:
            while part := stream.read(MIB):
                size += len(part)
                if size > largest:
                    raise DataError(f"{shown}: more than {largest:,} bytes (largest={largest}); expected {EXPECTED}.")
                file.write(part)
    except DataError:
        raise
    except Exception as wrong:  # fsspec's file systems have as many kinds of errors as there are services
        raise DataError(f"{shown} cannot be fetched ({first_line(wrong)}); expected {EXPECTED}.") from wrong
    return target


@contextmanager
def _opened(url: str) -> Iterator[Any]:
    if url.startswith(("http://", "https://")):
        with urllib.request.urlopen(url, timeout=60) as stream:
            yield stream
        return
    import fsspec

    system, path = fsspec.core.url_to_fs(url)
    with system.open(path, "rb") as stream:  # of a file within another one, which is closed when nobody holds `system`
        yield stream


def first_line(wrong: BaseException) -> str:
    """What another library's error says, on one line."""
    return f"{type(wrong).__name__}: {(str(wrong).strip().splitlines() or [''])[0][:300]}"
