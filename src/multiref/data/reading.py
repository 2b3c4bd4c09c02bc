"""Preference pairs from wherever they are kept, in whichever format; and what becomes of rows that cannot be used."""

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

from multiref._files import write_whole
from multiref._progress import tell
from multiref.data.files import LARGEST
from multiref.data.formats import COLUMNS, VALUES, Format, Rankings, has_column, recognise, renamed, value_of, wanted_columns
from multiref.data.on_ray import Told, packed_on_ray
from multiref.data.pairs import REFUSED, USED, Pair, as_pair, from_pandas, list_unread, unread_columns
from multiref.data.sources import Source, open_source
from multiref.data.spooled import SpooledPairs
from multiref.errors import ArgumentError, DataError, MultirefNotice, MultirefWarning

Origins: TypeAlias = Iterable[tuple[str, Any]]
SKIPPED = "skipped.jsonl"
HOPELESS = 10_000  # rows that cannot be used, where none is skipped: the others are not looked at
_LOOKED_AT = 20  # rows that are looked at for the columns of a data set


@dataclass(frozen=True)
class Selection:
    """Which rows of a source, and how they are read.

    name, split: of a data set that has several; "train[:5%]" is a part of one. columns: {ours: theirs} for foreign names of
    prompt, chosen, rejected, label, margin, …; and what the label's values mean: {first: 1, second: 2, tie: 0}.
    rankings: of several answers with scores, the best against the worst (ends) or all pairs. bad_rows: refuse the data for a
    row that cannot be used, or skip such rows. limit: only so many rows, from the start.
    """

    name: str | None = None
    split: str | None = None
    columns: Mapping[str, object] = field(default_factory=dict)
    rankings: Rankings = "ends"
    bad_rows: Literal["refuse", "skip"] = "refuse"
    limit: int | None = None

    def __post_init__(self) -> None:
        if unknown := [name for name in self.columns if name not in (*COLUMNS, *VALUES)]:
            known = ", ".join((*COLUMNS, *VALUES))
            raise ArgumentError(f"columns: {unknown[0]!r} is none of ours; expected {{ours: theirs}} for some of {known}.")
        if self.limit is not None and not 0 <= self.limit <= sys.maxsize:
            raise ArgumentError(f"limit: expected a number of rows, from 0 to {sys.maxsize}.")
        for what, value, choices in (
            ("rankings", self.rankings, ("ends", "all")),
            ("bad_rows", self.bad_rows, ("refuse", "skip")),
        ):
            if value not in choices:
                raise ArgumentError(f"{what}: found {value!r}, expected {' or '.join(choices)}.")


@dataclass
class Reading:
    """What was read. source: where from, in words. format: which was recognised. rows: how many; bad: the reasons of those that
    were left out, by origin."""

    pairs: Sequence[Pair]
    source: str
    format: str
    rows: int = 0
    bad: dict[str, str] = field(default_factory=dict)


def read_pairs(
    source: Source,
    *,
    name: str | None = None,
    split: str | None = None,
    columns: Mapping[str, object] | None = None,
    rankings: Rankings = "ends",
    bad_rows: Literal["refuse", "skip"] = "refuse",
    limit: int | None = None,
    largest: int = LARGEST,
) -> list[Pair]:
    """The pairs of a source, in its order.

    Args:
        source: a file (.jsonl, .json, .csv, .tsv, each also packed; .parquet), a folder of such files, a folder of
            `save_to_disk`, a URL, the id of a hub data set, or rows in memory (`datasets.Dataset`, `IterableDataset`, a list).
        name, split, columns, rankings, bad_rows, limit: see `Selection`. Formats are recognised by their columns: see
            `data.formats`.
        largest: bytes of a file, and of what it unpacks to.

    Errors: DataError naming file and row (counted from 1; blank lines count, so that it is the line in an editor).
    """
    chosen = Selection(name, split, columns or {}, rankings, bad_rows, limit)
    return list(read(source, chosen, largest=largest).pairs)


def read(
    source: Source,
    selection: Selection = Selection(),
    *,
    skipped: str | os.PathLike[str] | None = None,
    largest: int = LARGEST,
    say: Callable[[str], None] | None = None,
    spool: str | os.PathLike[str] | None = None,
    withhold: bool = False,
    on_ray: bool = False,
) -> Reading:
    """The same with what was found out.

    Args:
        source: as of `read_pairs`. selection: which rows, under which names. largest: bytes of a file, and unpacked.
        on_ray: several files are read by Ray Data on its workers, where rows that cannot be used are refused, there is no
            limit, and there is a spool; else here.
        spool: a folder: pairs are held there in an Arrow file without a name rather than in memory (`data.spooled`).
        withhold: labels are private: of rows that are skipped no more is written or said than where they stand.
        skipped: where rows that are skipped are written, with the reason.
        say: told what is fetched, spooled and skipped; None: a notice or a warning.
    """
    unread: set[str] = set()
    some = partial(wanted_columns, columns=selection.columns, others=(*USED, *REFUSED))

    def wanted(names: Sequence[str]) -> list[str]:
        kept = some(names)
        unread.update(set(names) - set(kept))
        return kept

    speak = say or (lambda text: warnings.warn(text, MultirefNotice, stacklevel=3))
    bad = _BadRows(selection.bad_rows == "skip", withhold)
    with open_source(source, name=selection.name, split=selection.split, largest=largest, wanted=wanted, say=speak) as opened:
        kind = _recognised(opened, selection, opened.name)
        name, told = kind.name if kind else "nothing", Told()
        if on_ray and spool is not None and len(opened.files) > 1 and not bad.skip and selection.limit is None:
            convert = partial(_pairs_and_ends, selection, kind)
            packed = packed_on_ray(list(map(str, opened.files)), convert, some, largest, told)
            pairs: Sequence[Pair] = SpooledPairs.write_packed(packed, spool)
            bad.rows, unread = told.rows, unread | told.unread
        else:
            rows = _pairs(opened, selection, kind, bad, unread)
            pairs = list(rows) if spool is None else SpooledPairs.write(rows, spool)
        found = Reading(pairs, f"{opened.name}, {opened.kind}", name, bad.rows)
    if not found.pairs and not bad.reasons and selection.limit != 0:
        shown = source if isinstance(source, str | os.PathLike) else "The data"
        raise DataError(f"{shown} has no rows; expected at least one preference pair.")
    list_unread(unread, opened.name)
    found.bad = bad.finish(opened.name, bool(found.pairs), None if skipped is None else Path(skipped), say)
    return found


def as_pairs(rows: Origins, source: str) -> Iterator[Pair]:
    """(origin, row or `Pair`) … → pairs, in every format that `read_pairs` recognises; columns that nothing here reads are
    listed in one notice, once for the whole `source`. DataError for the first row that cannot be used."""
    start = iter(rows)
    first = next(start, None)
    if first is None or isinstance(first[1], Pair):
        yield from (as_pair(row, origin=origin) for origin, row in chain([] if first is None else [first], start))
        return
    held, unread = [first, *start], set[str]()
    selection = Selection()
    kind = _recognised(lambda: iter(held), selection, source)
    yield from _pairs(lambda: iter(held), selection, kind, None, unread)
    list_unread(unread, source)


def _pairs_and_ends(selection: Selection, kind: Format | None, rows: Origins, unread: set[str]) -> Iterator[Pair | None]:
    """The pairs of these rows, None after each row. DataError for the first row that cannot be used."""
    for each in rows:
        yield from _pairs(partial(iter, [each]), selection, kind, None, unread)
        yield None


def _recognised(rows: Callable[[], Origins], selection: Selection, source: str) -> Format | None:
    """The format of the rows; None where there is none."""
    merged: dict[str, Any] = {}
    where = source
    for number, (origin, row) in enumerate(islice(rows(), _LOOKED_AT)):
        where = where if number else origin
        if isinstance(row, Mapping):
            row = from_pandas(row)
            named = selection.columns  # which a later row may lack
            there = {ours: theirs for ours, theirs in named.items() if has_column(row, str(theirs))} if number else named
            merged = {**renamed(row, there, origin), **merged}
            merged = {key: value for key, value in merged.items() if value is not None}
    kind = recognise(merged, selection.columns, selection.rankings, where) if merged else None
    if kind is not None and kind.label is not None:
        label = str(selection.columns.get("label", kind.label))
        labels = (value_of(row, label) for _, row in rows() if isinstance(row, Mapping) and has_column(row, label))
        kind = kind.knowing(labels, source)
        if "(0 the first" in kind.name.replace("'", ""):
            warnings.warn(
                f"{source}: {kind.name}. If it is the other way round, say so: columns: {{first: 1, second: 0}}.",
                MultirefNotice,
                stacklevel=4,
            )
    return kind


def _pairs(
    rows: Callable[[], Origins], selection: Selection, kind: Format | None, bad: "_BadRows | None", unread: set[str]
) -> Iterator[Pair]:
    read = frozenset({*USED, *(kind.reads if kind else ())})
    for number, (origin, row) in enumerate(islice(rows(), selection.limit)):
        if number % 1000 == 0:
            tell("reading", number, 0)
        if bad is not None:
            bad.rows += 1
        try:
            if isinstance(row, Pair) or not isinstance(row, Mapping) or kind is None:
                made = [as_pair(row, origin=origin)]
            else:
                row = renamed(from_pandas(row), selection.columns, origin)
                unread |= unread_columns(row, read)
                made = [as_pair(each, origin=origin) for each in kind.convert(row, origin)]
                if kind.asks and row.get("prompt") is None and not all(pair.prompt for pair in made):
                    raise DataError(f"{origin}: no prompt, and other rows have one; give this row its own, or remove it.")
        except DataError as error:
            if bad is None:
                raise
            bad.add(origin, row, error)
            if bad.hopeless:
                return
        else:
            yield from made
    tell("reading", 1, 1)


class _BadRows:
    """Rows that cannot be used, and why."""

    def __init__(self, skip: bool, withhold: bool) -> None:
        self.skip, self.withhold, self.rows = skip, withhold, 0
        self.count = 0
        self.reasons: dict[str, str] = {}  # of all that are skipped; where they are refused, of the first three
        self.lines: list[str] = []
        self.first: DataError | None = None

    @property
    def hopeless(self) -> bool:
        return not self.skip and self.count >= HOPELESS

    def add(self, origin: str, row: Any, error: DataError) -> None:
        self.first, self.count = self.first or error, self.count + 1
        if not self.skip and self.count > 3:
            return
        self.reasons[origin] = f"{origin}: not shown, as labels are private." if self.skip and self.withhold else str(error)
        if self.skip:
            said = {} if self.withhold else {"row": row}
            line = {"origin": origin, "reason": self.reasons[origin], **said}
            self.lines.append(json.dumps(line, ensure_ascii=False, default=str))

    def finish(self, source: str, some: bool, path: Path | None, say: Callable[[str], None] | None) -> dict[str, str]:
        """The reasons. DataError unless such rows are skipped; and where none is left."""
        if not self.reasons:
            return {}
        three = " ".join(list(self.reasons.values())[:3])
        count = f"{self.count:,} of {self.rows:,} rows cannot be used{' (others were not looked at)' if self.hopeless else ''}"
        if not self.skip or not some:
            advice = "" if not some else " bad_rows: skip (--bad-rows skip) leaves such rows out."
            shown = three if len(self.reasons) == 1 else f"{source}: {count}: {three}"
            raise DataError(shown + advice) from self.first
        if path is not None:
            write_whole(path, "".join(line + "\n" for line in self.lines).encode(errors="backslashreplace"))
        where = "" if path is None else f" They are in {path}."
        said = f"{source}: {count} and are left out: {three}{where}"
        if say is not None:
            say(said)
        else:
            warnings.warn(said, MultirefWarning, stacklevel=4)
        return self.reasons
