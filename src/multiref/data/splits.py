"""Which rows are asked for: the files of a split, and the part of it that is cut out ("train[:5%]")."""

import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import TypeVar

from multiref.data.files import Rows
from multiref.errors import DataError, MultirefWarning

P = TypeVar("P", bound=PurePath)
_SPLIT = re.compile(r"(\w[\w.-]*)?(?:\[(-?\d{1,18}%?)?:(-?\d{1,18}%?)?\])?")
_SPLITS = "train", "test", "validation", "valid", "dev", "eval", "val"


class Opened:
    """Rows that can be read again: calling it gives (origin, row) from the start.

    Attributes: name, of the source in messages; kind, in words; files, that all of it is read from: paths, or URLs.
    """

    def __init__(self, name: str, kind: str, rows: Callable[[], Rows], files: Sequence[Path | str] = ()) -> None:
        self.name, self.kind, self.files, self._rows = name, kind, tuple(files), rows

    def __call__(self) -> Rows:
        return self._rows()


def files_of_split(found: Sequence[P], root: PurePath, name: str, split: str | None) -> Sequence[P]:
    """The files of the split that is asked for; where none names a split, all of them are train, as `datasets` has it."""
    by: dict[str, list[P]] = {}
    for each in found:
        by.setdefault(_split_in(each.relative_to(root)), []).append(each)
    asked, _, _ = parse_split(split)
    if asked is None and len(by) > 1:
        raise DataError(
            f"{name} has files of several splits ({', '.join(sorted(by)).removeprefix(', ')}); say which one: split: train "
            "(--split train)."
        )
    if asked is not None and asked not in by and (list(by) != [""] or asked != "train"):
        known = ", ".join(sorted(filter(None, by))) or "none that names one: such files are train"
        raise DataError(f"{name} has no files of the split {asked!r}; found {known}.")
    return by.get(asked or "", found) if asked in by else found


def say_what_lacks(files: Sequence[PurePath], name: str) -> None:
    """A warning where files say that they are some of more (train-00000-of-00002.parquet) than there are. DataError where they
    say two numbers, as where a data set was saved over another."""
    there: dict[tuple[str, str], Counter[str]] = {}
    for each in files:
        if found := re.fullmatch(r"(.*?)\d+-of-(\d+)(\..*)", str(each)):
            there.setdefault((found[1], found[3]), Counter())[found[2]] += 1
    for (begin, end), counts in there.items():
        if len(counts) > 1:
            raise DataError(
                f"{name} holds files {PurePath(begin).name}…{end} of two data sets (-of-{', -of-'.join(sorted(counts))}), one "
                "saved over the other. Remove those that are not meant."
            )
        ((total, count),) = counts.items()
        if count < int(total):
            warnings.warn(
                f"{name} has {count} of {int(total)} files {PurePath(begin).name}…-of-{total}{end}: only their rows are read. "
                "Copy or download the others, if all of it is meant.",
                MultirefWarning,
                stacklevel=2,
            )


def is_hidden(each: PurePath, under: PurePath) -> bool:
    """Whether a file below a folder is none of the data's: hidden, or a note that `datasets` or we left there."""
    return any(part.startswith((".", "_")) for part in each.relative_to(under).parts) or each.name in (
        "dataset_info.json", "skipped.jsonl",
    )  # fmt: skip


def _split_in(path: PurePath) -> str:
    """train-00000-of-00002.parquet, train/0.jsonl → train; "" where no split is named."""
    for part in reversed(path.parts):
        if (word := re.match(r"[a-z]+(?:_[a-z]+)*", part.lower())) and word[0].split("_")[0] in _SPLITS:
            return word[0]
    return ""


def in_order(path: PurePath) -> list[tuple[int, int | str]]:
    """Shard 10 after shard 9."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", path.as_posix()) if part]


def parse_split(split: str | None) -> tuple[str | None, str | None, str | None]:
    """ "train[10%:200]" → (train, 10%, 200)."""
    if split is None:
        return None, None, None
    found = _SPLIT.fullmatch(split.strip())
    if found is None:
        raise DataError(f"split: found {split!r}, expected a name, a part of it, or both: train, train[:5%], [100:200].")
    return found[1], found[2], found[3]


def cut(opened: Opened, split: str | None) -> Opened:
    """The rows that a split cuts out, by percent or number."""
    _, low, high = parse_split(split)
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


def check_split(asked: str | None, own: object, name: str) -> None:
    """One data set alone is the split that it says, or else train: as test it would be the rows that were trained on."""
    known = re.split(r"[\[+]", str(own or "train"))[0]
    if asked not in (None, known):
        raise DataError(f"{name} has no split {asked!r}; it is {known!r}, and no other one is beside it.")
