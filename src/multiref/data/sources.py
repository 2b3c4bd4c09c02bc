"""Where rows are: a file, a folder of shards, a saved data set, the hub, a URL, or a data set in memory."""

import json
import os
import re
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from multiref._files import as_path, unusable_name
from multiref.data.files import ENDINGS, EXPECTED, LARGEST, Rows, Wanted, file_rows, is_rows, with_label_names
from multiref.data.splits import Opened, check_split, cut, files_of_split, in_order, is_hidden, parse_split, say_what_lacks
from multiref.data.urls import fetch, first_line, list_files, show, split_url
from multiref.errors import DataError

Source: TypeAlias = "str | os.PathLike[str] | Iterable[Any]"
MOST = 100_000  # files and folders in a folder of data
_UNREACHED = "Offline is meant with HF_HUB_OFFLINE=1, which uses what is cached; or give a file or a folder."


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
        as_set = partial(_dataset, split=split, stack=stack, wanted=wanted, say=say)
        if not isinstance(source, str | os.PathLike):
            _check_name(name, "what is in memory")
            yield _in_memory(source, split, as_set)
            return
        text = os.fspath(source)
        if (why := unusable_name(text)) is not None:
            raise DataError(f"{text[:60]}: no file or data set can have this name, which {why}; expected {EXPECTED}.")
        if (files := list_files(text)) is not None:
            yield _folder_at(text, files, split, largest, wanted, Path(stack.enter_context(_spool())), say)
            return
        if "://" in text:
            text = str(fetch(text, Path(stack.enter_context(_spool())), largest, say))
        path = as_path(text)
        if path.is_dir():
            yield _folder(path, name, split, largest, wanted) or _saved(path, name, as_set)
        elif path.exists() or not _is_hub_id(text):
            _check_name(name, text)
            yield cut(_files(files_of_split([path], path.parent, path.name, split), path.name, largest, wanted), split)
        else:
            yield as_set(_from_hub(text, name), text, "a data set of the hub")


def _check_name(name: str | None, what: str) -> None:
    if name not in (None, "default"):
        raise DataError(f"name: found {name!r}, and {what} has no configurations; leave it out (only data sets in folders do).")


def _files(paths: Sequence[Path], name: str, largest: int, wanted: Wanted) -> Opened:
    def rows() -> Rows:
        for path in paths:
            yield from file_rows(path, largest, wanted)

    kind = f"a file ({is_rows(paths[0].name) or '?'})" if len(paths) == 1 else f"a folder of {len(paths)} files"
    return Opened(name, kind, rows, paths)


def _saved(path: Path, name: str | None, as_set: Callable[..., Opened]) -> Opened:
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

    return as_set(_theirs(load, str(path)), path.name, "a saved data set")


def _folder(path: Path, name: str | None, split: str | None, largest: int, wanted: Wanted) -> Opened | None:
    """Of a folder of files; None where it is one for `datasets`."""
    if name is not None or (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return None
    found = sorted((each for each in _under_folder(path) if is_rows(each.name) and not is_hidden(each, path)), key=in_order)
    if not found:
        raise DataError(f"{path} is a folder without any of {', '.join(ENDINGS)}; expected {EXPECTED}.")
    chosen = files_of_split(found, path, str(path), split)
    say_what_lacks(chosen, str(path))
    return cut(_files(chosen, path.name, largest, wanted), split)


def _under_folder(path: Path) -> Iterator[Path]:
    """What lies in it, at any depth. DataError for more than a data set has, as in a home folder that was named by mistake."""
    for count, each in enumerate(path.rglob("*")):
        if count == MOST:
            raise DataError(f"{path} holds more than {MOST:,} files and folders; name the folder of the data alone.")
        yield each


def _folder_at(
    url: str, files: Sequence[str], split: str | None, largest: int, wanted: Wanted, folder: Path, say: Callable[[str], None]
) -> Opened:
    """A folder at a URL, however large: one file of it is here at a time."""
    heads = {each: split_url(each) for each in files}
    paths = {PurePosixPath(head.netloc + head.path): each for each, head in heads.items()}
    root = PurePosixPath(os.path.commonpath([path.parent for path in paths]))
    files_here = files_of_split(list(paths), root, show(url), split)
    say_what_lacks(files_here, show(url))
    chosen = [paths[path] for path in files_here]
    say(f"Reading {len(chosen):,} files at {show(url)}, one at a time.")

    def rows() -> Rows:
        with tempfile.TemporaryDirectory(dir=folder) as here:
            for each in chosen:
                path = fetch(each, Path(here), largest, lambda _: None)
                yield from file_rows(path, largest, wanted)
                path.unlink()

    return cut(Opened(root.name or show(url), f"a folder of {len(chosen)} files at a URL", rows, chosen), split)


def _spool() -> Any:
    return tempfile.TemporaryDirectory(prefix="multiref-data-", ignore_cleanup_errors=True)


# ---- data sets of `datasets` ----


def _in_memory(source: Iterable[Any], split: str | None, as_set: Callable[..., Opened]) -> Opened:
    kind = f"{type(source).__module__}.{type(source).__qualname__}"
    if kind.startswith("pandas.") and hasattr(source, "to_dict"):
        source = source.to_dict("records")
    elif kind.startswith("pyarrow.") and hasattr(source, "to_pylist"):
        source = source.to_pylist()
    if kind.startswith("datasets."):
        named = getattr(getattr(source, "info", None), "dataset_name", None)
        return as_set(source, str(named or "the data set"), "a data set in memory")
    if isinstance(source, Mapping) or not isinstance(source, Iterable):
        raise DataError(f"the data is a {type(source).__name__}; expected {EXPECTED}, a data set, or a list of rows.")
    check_split(parse_split(split)[0], None, "what is in memory")
    rows = source if isinstance(source, Sequence) else list(source)
    return cut(Opened("the rows", "rows in memory", lambda: ((f"row {n}", row) for n, row in enumerate(rows, 1))), split)


def _dataset(
    found: Any, name: str, kind: str, *, split: str | None, stack: ExitStack, wanted: Wanted, say: Callable[[str], None]
) -> Opened:
    asked, _, _ = parse_split(split)
    if isinstance(found, Mapping):  # of several splits
        if asked is None and len(found) > 1:
            raise DataError(f"{name} has the splits {', '.join(found)}; say which one: split: train (--split train).")
        asked = asked or next(iter(found))
        if asked not in found:
            raise DataError(f"{name} has no split {asked!r}; found {', '.join(found)}.")
        found, name = found[asked], f"{name}[{asked}]"
    else:
        check_split(asked, getattr(found, "split", None), name)
    named = with_label_names((getattr(found, "features", None) or {}) and found.features.to_dict())
    streamed = type(found).__name__ == "IterableDataset"
    if not streamed and found.format["type"] not in (None, "custom"):
        found = found.with_format(None)  # rows as plain values, not as tensors or tables
    if "decode=True" in repr(found.features) and (streamed or found.format["type"] is None):
        found = (found if streamed else found.to_iterable_dataset()).decode(False)  # no picture or sound is looked at
    if streamed:  # which may be read slowly, and anew each time
        spooled = Path(stack.enter_context(_spool())) / "rows.jsonl"
        say(f"{name} is streamed; its rows are written to disk first.")
        _write_rows((named({key: row[key] for key in wanted(list(row))}) for row in found), spooled, name)
        files = _files([spooled], name, LARGEST, list)
        rows = lambda: ((f"{name}:{origin.rpartition(':')[2]}", row) for origin, row in files())  # noqa: E731
        return cut(Opened(name, "a streamed data set, spooled to disk", rows), split)
    return cut(Opened(name, kind, lambda: ((f"{name}:{n}", named(row)) for n, row in enumerate(found, 1))), split)


def _write_rows(rows: Iterable[Any], path: Path, name: str) -> None:
    number, stream = 0, iter(rows)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        while (row := _theirs(lambda: next(stream, None), f"{name} after row {number}")) is not None:
            number += 1
            try:
                file.write(json.dumps(row, default=lambda value: value.isoformat()) + "\n")
            except (TypeError, ValueError, AttributeError) as wrong:
                raise DataError(f"{name}:{number}: holds what JSON cannot ({wrong}); expected texts, numbers, lists.") from None


def _theirs(load: Callable[[], Any], what: str) -> Any:
    try:
        return load()
    except Exception as wrong:  # of `datasets`, pyarrow, fsspec and the hub's client: each has its own kinds
        raise DataError(f"{what}: `datasets` cannot open it ({first_line(wrong)}); expected {EXPECTED}.") from wrong


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
        why = f"{asleep}, and it is not cached" if asleep else first_line(wrong)
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
