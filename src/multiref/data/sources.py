"""Where rows are: a file, a folder of shards, a saved data set, the hub, a URL, or a data set in memory."""

import os
import re
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, TypeAlias, TypeVar
from urllib.parse import SplitResult, urlsplit

from multiref._files import MIB, as_path, unusable_name
from multiref.data.files import ENDINGS, EXPECTED, LARGEST, Rows, Wanted, file_rows, is_rows, with_label_names
from multiref.errors import DataError

Source: TypeAlias = "str | os.PathLike[str] | Iterable[Any]"
P = TypeVar("P", bound=PurePath)
_SPLIT = re.compile(r"(\w[\w.-]*)?(?:\[(-?\d{1,18}%?)?:(-?\d{1,18}%?)?\])?")
MOST = 100_000  # files and folders in a folder of data
_SPLITS = "train", "test", "validation", "valid", "dev", "eval", "val"
_UNREACHED = "Offline is meant with HF_HUB_OFFLINE=1, which uses what is cached; or give a file or a folder."


class Opened:
    """Rows that can be read again: calling it gives (origin, row) from the start.

    Attributes: name, of the source in messages; kind, in words; files, that all of it is read from: paths, or URLs.
    """

    def __init__(self, name: str, kind: str, rows: Callable[[], Rows], files: Sequence[Path | str] = ()) -> None:
        self.name, self.kind, self.files, self._rows = name, kind, tuple(files), rows

    def __call__(self) -> Rows:
        return self._rows()


@contextmanager
def open_source(
    source: Source,
    *,
    name: str | None = None,
    split: str | None = None,
    largest: int = LARGEST,
    wanted: Wanted = list,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[Opened]:
    """The rows of a source, as long as it is open: what has to be spooled lies in a temporary folder meanwhile.

    Args:
        source: a file, a folder of such, a folder of `save_to_disk`, a URL, the id of a hub data set, or rows in memory
            (`datasets.Dataset`, `IterableDataset`, a list).
        name, split: of a hub data set or a folder that has several; a split may be cut: "train[:5%]", "[100:200]".
        largest: bytes of a file, and of what it unpacks to. wanted: a file's columns → those to read.
        say: told what is spooled.

    Raises: DataError for what is not there, is none of these, or has no such split.
    """
    with ExitStack() as stack:
        if not isinstance(source, str | os.PathLike):
            _check_name(name, "what is in memory")
            yield _in_memory(source, split, stack, say)
            return
        text = os.fspath(source)
        if (why := unusable_name(text)) is not None:
            raise DataError(f"{text[:60]}: no file or data set can have this name, which {why}; expected {EXPECTED}.")
        if (files := _files_at(text)) is not None:
            yield _folder_at(text, files, split, largest, wanted, Path(stack.enter_context(_spool())), say)
            return
        if "://" in text:
            text = str(fetched(text, Path(stack.enter_context(_spool())), largest, say))
        path = as_path(text)
        if path.is_dir():
            yield _folder(path, name, split, largest, wanted) or _saved(path, name, split, stack, say)
        elif path.exists() or not _is_hub_id(text):
            _check_name(name, text)
            yield _cut(_files(_of_split([path], path.parent, path.name, split), path.name, largest, wanted), split)
        else:
            yield _dataset(_from_hub(text, name), text, split, "a data set of the hub", stack, say)


def _check_name(name: str | None, what: str) -> None:
    if name not in (None, "default"):
        raise DataError(f"name: found {name!r}, and {what} has no configurations; leave it out (only data sets in folders do).")


def _files(paths: Sequence[Path], name: str, largest: int, wanted: Wanted) -> Opened:
    def rows() -> Rows:
        for path in paths:
            yield from file_rows(path, largest, wanted)

    kind = f"a file ({is_rows(paths[0].name) or '?'})" if len(paths) == 1 else f"a folder of {len(paths)} files"
    return Opened(name, kind, rows, paths)


def _saved(path: Path, name: str | None, split: str | None, stack: ExitStack, say: Callable[[str], None]) -> Opened:
    """What `datasets` has to open: a folder of `save_to_disk`, or a configuration of a folder as the hub has them."""
    import datasets

    for each in _under_folder(path):  # which `datasets` would wait for
        if not each.is_file() and not each.is_dir():
            raise DataError(f"{each} is no regular file; expected a folder of `save_to_disk`.")

    def load() -> Any:
        found = datasets.load_from_disk(str(path)) if name is None else datasets.load_dataset(str(path), name)
        for each in found.values() if isinstance(found, Mapping) else (found,):
            each.data.validate(full=True)  # of damaged offsets rows would be read outside the file, which ends the process
        return found

    return _dataset(_theirs(load, str(path)), path.name, split, "a saved data set", stack, say)


def _folder(path: Path, name: str | None, split: str | None, largest: int, wanted: Wanted) -> Opened | None:
    """Of a folder of files; None where it is one for `datasets`."""
    if name is not None or (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return None
    found = sorted((each for each in _under_folder(path) if is_rows(each.name) and not _hidden(each, path)), key=_in_order)
    if not found:
        raise DataError(f"{path} is a folder without any of {', '.join(ENDINGS)}; expected {EXPECTED}.")
    return _cut(_files(_of_split(found, path, str(path), split), path.name, largest, wanted), split)


def _under_folder(path: Path) -> Iterator[Path]:
    """What lies in it, at any depth. DataError for more than a data set has, as in a home folder that was named by mistake."""
    for count, each in enumerate(path.rglob("*")):
        if count == MOST:
            raise DataError(f"{path} holds more than {MOST:,} files and folders; name the folder of the data alone.")
        yield each


def _of_split(found: Sequence[P], root: PurePath, name: str, split: str | None) -> Sequence[P]:
    """The files of the split that is asked for; where none names a split, all of them are train, as `datasets` has it."""
    by: dict[str, list[P]] = {}
    for each in found:
        by.setdefault(_split_of(each.relative_to(root)), []).append(each)
    asked, _, _ = _parts(split)
    if asked is None and len(by) > 1:
        raise DataError(
            f"{name} has files of several splits ({', '.join(sorted(by)).removeprefix(', ')}); say which one: split: train "
            "(--split train)."
        )
    if asked is not None and asked not in by and (list(by) != [""] or asked != "train"):
        known = ", ".join(sorted(filter(None, by))) or "none that names one: such files are train"
        raise DataError(f"{name} has no files of the split {asked!r}; found {known}.")
    return by.get(asked or "", found) if asked in by else found


def _hidden(each: PurePath, under: PurePath) -> bool:
    return any(part.startswith((".", "_")) for part in each.relative_to(under).parts) or each.name in (
        "dataset_info.json", "skipped.jsonl",
    )  # fmt: skip


def _split_of(path: PurePath) -> str:
    """train-00000-of-00002.parquet, train/0.jsonl → train; "" where no split is named."""
    for part in reversed(path.parts):
        if (word := re.match(r"[a-z]+(?:_[a-z]+)*", part.lower())) and word[0].split("_")[0] in _SPLITS:
            return word[0]
    return ""


def _in_order(path: PurePath) -> list[tuple[int, int | str]]:
    """Shard 10 after shard 9."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", path.as_posix()) if part]


def _parts(split: str | None) -> tuple[str | None, str | None, str | None]:
    """ "train[10%:200]" → (train, 10%, 200)."""
    if split is None:
        return None, None, None
    found = _SPLIT.fullmatch(split.strip())
    if found is None:
        raise DataError(f"split: found {split!r}, expected a name, a part of it, or both: train, train[:5%], [100:200].")
    return found[1], found[2], found[3]


def _cut(opened: Opened, split: str | None) -> Opened:
    """The rows that a split cuts out, by percent or number."""
    _, low, high = _parts(split)
    if low is None and high is None:
        return opened
    counted = any(bound is not None and not bound.isdigit() for bound in (low, high))  # by percent, or from the end
    total = sum(1 for _ in opened()) if counted else sys.maxsize

    def place(bound: str | None, default: int) -> int:
        if bound is None:
            return default
        at = round(int(bound[:-1]) * total / 100) if bound.endswith("%") else int(bound)
        return min(max(at + total if at < 0 else at, 0), total)

    start, end = place(low, 0), place(high, total)

    def rows() -> Rows:
        for number, row in enumerate(opened()):
            if number >= end:
                return
            if number >= start:
                yield row

    return Opened(f"{opened.name}[{split}]", opened.kind, rows)


# ---- data sets of `datasets` ----


def _in_memory(source: Iterable[Any], split: str | None, stack: ExitStack, say: Callable[[str], None]) -> Opened:
    kind = f"{type(source).__module__}.{type(source).__qualname__}"
    if kind.startswith("pandas.") and hasattr(source, "to_dict"):
        source = source.to_dict("records")
    elif kind.startswith("pyarrow.") and hasattr(source, "to_pylist"):
        source = source.to_pylist()
    if kind.startswith("datasets."):
        named = getattr(getattr(source, "info", None), "dataset_name", None)
        return _dataset(source, str(named or "the data set"), split, "a data set in memory", stack, say)
    if isinstance(source, Mapping) or not isinstance(source, Iterable):
        raise DataError(f"the data is a {type(source).__name__}; expected {EXPECTED}, a data set, or a list of rows.")
    _check_split(_parts(split)[0], None, "what is in memory")
    rows = source if isinstance(source, Sequence) else list(source)
    return _cut(Opened("the rows", "rows in memory", lambda: ((f"row {n}", row) for n, row in enumerate(rows, 1))), split)


def _dataset(found: Any, name: str, split: str | None, kind: str, stack: ExitStack, say: Callable[[str], None]) -> Opened:
    asked, _, _ = _parts(split)
    if isinstance(found, Mapping):  # of several splits
        if asked is None and len(found) > 1:
            raise DataError(f"{name} has the splits {', '.join(found)}; say which one: split: train (--split train).")
        asked = asked or next(iter(found))
        if asked not in found:
            raise DataError(f"{name} has no split {asked!r}; found {', '.join(found)}.")
        found, name = found[asked], f"{name}[{asked}]"
    else:
        _check_split(asked, getattr(found, "split", None), name)
    named = with_label_names((getattr(found, "features", None) or {}) and found.features.to_dict())
    if type(found).__name__ == "IterableDataset":  # which may be read slowly, and anew each time
        spooled = Path(stack.enter_context(_spool())) / "rows.jsonl"
        say(f"{name} is streamed; its rows are written to disk first.")
        _write_rows(map(named, found), spooled, name)
        files = _files([spooled], name, LARGEST, list)
        return _cut(Opened(name, "a streamed data set, spooled to disk", lambda: _under(files(), name)), split)
    if getattr(found, "format", {}).get("type", "custom") != "custom":
        found = found.with_format(None)  # rows as plain values, not as tensors or tables
    return _cut(Opened(name, kind, lambda: ((f"{name}:{n}", named(row)) for n, row in enumerate(found, 1))), split)


def _check_split(asked: str | None, own: object, name: str) -> None:
    """One data set alone is the split that it says, or else train: as test it would be the rows that were trained on."""
    known = re.split(r"[\[+]", str(own or "train"))[0]
    if asked not in (None, known):
        raise DataError(f"{name} has no split {asked!r}; it is {known!r}, and no other one is beside it.")


def _under(rows: Rows, name: str) -> Rows:
    for origin, row in rows:
        yield f"{name}:{origin.rpartition(':')[2]}", row


def _write_rows(rows: Iterable[Any], path: Path, name: str) -> None:
    import json

    number, stream = 0, iter(rows)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        while (row := _theirs(lambda: next(stream, None), f"{name} after row {number}")) is not None:
            number += 1
            try:
                file.write(json.dumps(row) + "\n")
            except (TypeError, ValueError) as wrong:
                raise DataError(f"{name}:{number}: holds what JSON cannot ({wrong}); expected texts, numbers, lists.") from None


def _theirs(load: Callable[[], Any], what: str) -> Any:
    try:
        return load()
    except Exception as wrong:  # of `datasets`, pyarrow, fsspec and the hub's client: each has its own kinds
        raise DataError(f"{what}: `datasets` cannot open it ({_first_line(wrong)}); expected {EXPECTED}.") from wrong


def _first_line(wrong: BaseException) -> str:
    return f"{type(wrong).__name__}: {(str(wrong).strip().splitlines() or [''])[0][:300]}"


def _is_hub_id(text: str) -> bool:
    """org/name or name, and no file by its looks."""
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text) is not None and not is_rows(text) and not text.startswith(".")


def _from_hub(name: str, configuration: str | None) -> Any:
    """One attempt: where the hub cannot be reached, what is cached is all there is, and that is said at once."""
    import datasets
    import huggingface_hub.constants as hub

    settings: tuple[Any, ...] = (datasets.config, hub)
    asleep = _unreachable(hub.ENDPOINT) if not hub.HF_HUB_OFFLINE else "HF_HUB_OFFLINE is set"
    before = [getattr(each, "HF_HUB_OFFLINE", False) for each in settings]
    try:
        if asleep:
            for each in settings:
                each.HF_HUB_OFFLINE = True
        return datasets.load_dataset(name, configuration)
    except Exception as wrong:  # offline, unknown, gated, several configurations: theirs says which
        why = f"{asleep}, and it is not cached" if asleep else _first_line(wrong)
        raise DataError(
            f"No file or folder {name}, and no such data set could be had from the hub ({why}). {_UNREACHED}"
        ) from wrong
    finally:
        for each, value in zip(settings, before):
            each.HF_HUB_OFFLINE = value


def _unreachable(endpoint: str) -> str | None:
    """Why the hub does not answer; None where it does, whatever it says."""
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=10).close()
    except urllib.error.HTTPError:
        return None
    except (OSError, ValueError) as wrong:
        return f"{endpoint} cannot be reached: {getattr(wrong, 'reason', wrong)}"
    return None


# ---- URLs ----


def _spool() -> Any:
    return tempfile.TemporaryDirectory(prefix="multiref-data-", ignore_cleanup_errors=True)


def _shown(url: str) -> str:
    """Without a password or a token."""
    parts = _split_url(url)
    return f"{parts.scheme}://{parts.hostname or ''}{parts.path}"


def _split_url(url: str) -> SplitResult:
    """The parts of a URL; of a chain, of its first."""
    try:
        return urlsplit(url.partition("::")[0])
    except ValueError as wrong:
        raise DataError(f"{url[:60]} is no URL ({wrong}); expected {EXPECTED}.") from wrong


def _named(url: str) -> str:
    """The last part of what a URL names; of a chain (zip://a.jsonl::s3://b/c.zip), of its first."""
    parts = _split_url(url)
    return PurePosixPath(parts.netloc + parts.path).name


def _files_at(text: str) -> list[str] | None:
    """The files of rows below a URL that names a folder, or has a star in it, in their order; None for any other text."""
    if "://" not in text or text.startswith(("http://", "https://")):
        return None
    if is_rows(_named(text)) is not None and "*" not in text:
        return None
    import fsspec

    try:
        system, root = fsspec.core.url_to_fs(text)
        found = [PurePosixPath(each) for each in (system.glob(root) if "*" in root else system.find(root))]
    except Exception as wrong:  # as of `fetched`
        raise DataError(f"{_shown(text)} cannot be listed ({_first_line(wrong)}); expected {EXPECTED}.") from wrong
    top = PurePosixPath(root.partition("*")[0]).parent if "*" in root else PurePosixPath(root)
    rows = sorted((each for each in found if is_rows(each.name) and not _hidden(each, top)), key=_in_order)
    if not rows:
        raise DataError(f"{_shown(text)}: nothing there has a name in {', '.join(ENDINGS)}; expected {EXPECTED}.")
    within = "".join(text.partition("::")[1:])
    return [f"{system.unstrip_protocol(str(each))}{within}" for each in rows]


def _folder_at(
    url: str,
    files: Sequence[str],
    split: str | None,
    largest: int,
    wanted: Wanted,
    folder: Path,
    say: Callable[[str], None],
) -> Opened:
    """A folder at a URL, however large: one file of it is here at a time."""
    heads = {each: _split_url(each) for each in files}
    paths = {PurePosixPath(head.netloc + head.path): each for each, head in heads.items()}
    root = PurePosixPath(os.path.commonpath([path.parent for path in paths]))
    chosen = [paths[path] for path in _of_split(list(paths), root, _shown(url), split)]
    say(f"Reading {len(chosen):,} files at {_shown(url)}, one at a time.")

    def rows() -> Rows:
        with tempfile.TemporaryDirectory(dir=folder) as here:
            for each in chosen:
                path = fetched(each, Path(here), largest, lambda _: None)
                yield from file_rows(path, largest, wanted)
                path.unlink()

    return _cut(Opened(root.name or _shown(url), f"a folder of {len(chosen)} files at a URL", rows, chosen), split)


def fetched(url: str, folder: Path, largest: int, say: Callable[[str], None]) -> Path:
    """The file that a URL names, in a folder of ours; no more than `largest` bytes of it."""
    target, shown = folder / (_named(url) or "data"), _shown(url)
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
        raise DataError(f"{shown} cannot be fetched ({_first_line(wrong)}); expected {EXPECTED}.") from wrong
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
